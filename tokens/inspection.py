"""Print what a folder of shards holds, also of one made by another program."""

import hashlib
import os

import numpy as np
from tqdm import tqdm

from system.errors import UserError
from system.words import format_count
from tokens.shards import mask_path, open_data, read_meta
from tokens.tokenizer import VOCAB_SIZES, end_of_text_id, get_tokenizer

SHOWN_TOKENS = 64  # of each split
SHOWN_IDS = 16  # of each split, if there is no vocabulary to decode them
BLOCK_TOKENS = 1 << 24  # read at a time


def inspect(folder):
    """Print a folder's counts, tokenizer, documents and first tokens, and verify the checksums of its shards.

    Raises `UserError` if a checksum differs, or if `folder` is not a complete folder of shards.
    """
    has_checksums = read_meta(folder) is not None
    data = open_data(folder, "python prepare.py SOURCE")
    print(f"{folder}: {data.meta.get('source', 'no source given')}, {data.tokenizer} tokenizer")
    damaged = print_counts(data)
    print(f"largest id: {data.max_id}")
    print_beginnings(data)
    vocab_size = VOCAB_SIZES[data.tokenizer]
    if data.max_id >= vocab_size:
        raise UserError(
            f"{folder} holds token id {data.max_id}, but the {data.tokenizer} vocabulary ends at {vocab_size - 1}: made"
            " with another tokenizer, or damaged"
        )
    if damaged:
        raise UserError(
            f"{folder}/{damaged[0]} has changed since it was written (its checksum differs); make the folder again"
        )
    if has_checksums:
        print("the content matches its checksums")
    else:
        print("made elsewhere, without checksums: the checksums of its present content are now in meta.json")


def print_counts(data):
    """Print the shards, tokens and documents of each split; returns the names of shards whose checksum differs."""
    entries = {entry["file"]: entry for entry in data.meta["shards"]}
    eot = end_of_text_id(data.tokenizer)
    damaged = []
    total = sum(data.tokens(split) for split in data.splits)
    with tqdm(total=total, unit="tok", unit_scale=True, desc="reading", leave=False, disable=None) as bar:
        for split, shards in data.splits.items():
            documents = 0
            for path, shard in zip(shards.paths, shards, strict=True):
                digest, count = read_shard(shard, eot, bar)
                documents += count
                name = os.path.basename(path)
                if digest != entries[name]["sha256"]:
                    damaged.append(name)
                if data.counted is not None and digest_of_mask(path) != entries[name].get("mask_sha256"):
                    damaged.append(mask_path(name).name)
            tokens = data.tokens(split)
            counts = f"{format_count(len(shards), 'shard')}, {format_count(tokens, 'token')}"
            tqdm.write(f"{split:>5}: {counts}, {describe_documents(data, split, documents)}")
    return damaged


def describe_documents(data, split, documents):
    """What a split holds; `documents` is the number of its end-of-text ids, of which a conversation has several."""
    if data.counted is not None:
        share = data.counted[split].mean()
        return f"conversations in windows of {data.chat_window:,} tokens, of which {share:.0%} count in the loss"
    mean = f", {data.tokens(split) / documents:,.1f} tokens each" if documents else ""
    return format_count(documents, "document") + mean


def print_beginnings(data):
    """Print the first tokens of each split as text, or as ids if the vocabulary cannot be loaded."""
    try:
        tokenizer = get_tokenizer(data.tokenizer)
    except UserError as error:
        print(f"note: {error}")
        tokenizer = None
    for split, shards in data.splits.items():
        ids = shards[0][:SHOWN_TOKENS].tolist()
        if tokenizer is None or max(ids) >= tokenizer.vocab_size:
            print(f"{split:>5} begins with ids {ids[:SHOWN_IDS]}")
        else:
            print(f"{split:>5} begins: {tokenizer.decode(ids)!r}")


def digest_of_mask(path):
    """The checksum of the mask of the shard at `path`."""
    return hashlib.sha256(mask_path(path).read_bytes()).hexdigest()


def read_shard(shard, eot, bar):
    """(checksum, number of documents) of a shard, read in blocks to bound the memory."""
    digest, documents = hashlib.sha256(), 0
    for start in range(0, len(shard), BLOCK_TOKENS):
        block = shard[start : start + BLOCK_TOKENS]
        digest.update(block)
        documents += int(np.count_nonzero(block == eot))
        bar.update(len(block))
    return digest.hexdigest(), documents
