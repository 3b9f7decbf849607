"""What a folder of shards holds: ours or made elsewhere."""

import hashlib

import numpy as np
from tqdm import tqdm

from system.errors import UserError
from tokens.shards import open_data, read_meta
from tokens.tokenizer import VOCAB_SIZES, get_tokenizer

SHOWN = 64  # tokens
BLOCK = 1 << 24  # tokens read at a time


def inspect(folder):
    """Print counts, tokenizer, documents, first tokens, and whether the content matches its checksums.

    Raises `UserError` where it doesn't, or where `folder` is no folder of whole shards.
    """
    ours = read_meta(folder) is not None
    data = open_data(folder, "python prepare.py SOURCE")
    tokenizer = try_tokenizer(data.tokenizer)
    eot = VOCAB_SIZES[data.tokenizer] - 1  # the last id
    entries = {entry["file"]: entry for entry in data.meta["shards"]}
    print(f"{folder}: {data.meta.get('source', 'no source given')}, {data.tokenizer} tokenizer")
    damaged = []
    total = sum(data.tokens(split) for split in data.splits)
    with tqdm(total=total, unit="tok", unit_scale=True, desc="reading", leave=False) as bar:
        for split, shards in data.splits.items():
            documents = 0
            for shard in shards:
                digest, count = read_shard(shard, eot, bar)
                documents += count
                name = shard.filename.name
                if digest != entries[name]["sha256"]:
                    damaged.append(name)
            tokens = data.tokens(split)
            mean = f", {tokens / documents:,.1f} tokens each" if documents else ""
            counts = f"{counted(len(shards), 'shard')}, {counted(tokens, 'token')}, {counted(documents, 'document')}"
            tqdm.write(f"{split:>5}: {counts}{mean}")
    print(f"largest id: {data.max_id}")
    for split, shards in data.splits.items():
        ids = shards[0][:SHOWN].tolist()
        print(
            f"{split:>5} begins: {tokenizer.decode(ids)!r}" if tokenizer else f"{split:>5} begins with ids {ids[:16]}"
        )
    if damaged:
        raise UserError(f"{folder}/{damaged[0]} is not what was written (its checksum differs); make the folder anew")
    whole = "the content matches its checksums"
    print(whole if ours else "made elsewhere, without checksums: what it holds now is noted in meta.json")


def counted(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"


def read_shard(shard, eot, bar):
    """(checksum, documents) of a shard, in blocks so that memory stays flat."""
    digest, documents = hashlib.sha256(), 0
    for start in range(0, len(shard), BLOCK):
        block = shard[start : start + BLOCK]
        digest.update(block)
        documents += int(np.count_nonzero(block == eot))
        bar.update(len(block))
    return digest.hexdigest(), documents


def try_tokenizer(name):
    """The tokenizer, or None where its vocabulary is out of reach: then ids are shown."""
    try:
        return get_tokenizer(name)
    except UserError as error:
        print(f"note: {error}")
        return None
