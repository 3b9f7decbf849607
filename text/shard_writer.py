"""Write tokens into a folder of shards. Interrupted at any moment, it continues to the same bytes, see `text.progress`.

The result does not depend on the number of worker processes: pieces are tokenized anywhere and joined in order.
"""

import functools
import shlex
import shutil
import time
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from system.errors import NO_SPACE, UserError
from system.words import format_count
from text.documents import Piece
from text.encoding import tokenize
from text.progress import Progress, delete_shards, writing
from text.worker_pool import map_in_order
from tokens.shards import progress_files, read_meta, shard_name, split_of, write_meta, write_shard

FEWEST_TOKENS = 33  # of a split: one short window and the token after it
SMALL_CORPUS = 100_000_000  # training tokens: fewer suit a small model, see config/own_text.py


class Item(NamedTuple):
    """A piece and its place in the work."""

    position: list  # in the stream of pieces; a restart begins there
    split: str | None  # None: the first shard is validation, the others training
    share: float  # of all the work, 0 … 1
    piece: Piece


# ---- the work ----


def write_shards(progress, items, workers, name, should_retry=None):
    """Tokenize `items`, an iterator that starts at `progress.position`, into shards called `name`.

    Returns the content of `meta.json`, or None while other workers of the cluster have not finished. `workers` and
    `should_retry`: see `map_in_order`.
    """
    writer = ShardWriter(progress, name)
    function = functools.partial(tokenize, tokenizer_name=progress.request["tokenizer"])
    with tqdm(
        unit="tok", unit_scale=True, desc="tokenizing", disable=None, initial=writer.token_count(), smoothing=0.05
    ) as bar:
        for item, tokens in map_in_order(function, items, workers, should_retry):
            writer.add(item, tokens)
            bar.total = max(writer.expected_tokens(), writer.token_count())
            bar.update(writer.token_count() - bar.n)
    writer.close()
    return finish(progress)


class ShardWriter:
    """Joins tokens into shards of `progress.shard_tokens` tokens; the last shard of a split is shorter."""

    def __init__(self, progress, name):
        self.progress, self.name = progress, name
        self.suffix = "." + progress.request["format"]
        self.buffer = np.empty(progress.shard_tokens, np.uint16)
        self.filled = 0  # tokens in the buffer
        self.split = None  # of the tokens in the buffer
        self.skip = progress.skip
        self.start = time.monotonic() - progress.seconds
        progress.save_plan()  # before the first shard: a folder with shards and no progress file looks finished

    def token_count(self):
        """Tokens so far, including those in the buffer."""
        return self.progress.shard_token_count() + self.filled

    def expected_tokens(self):
        """Estimated tokens of all the work, from the share done so far."""
        return round(self.token_count() / max(self.progress.share, 1e-12))

    def add(self, item, tokens):
        """Append the `Tokens` of an item, and write each shard that is full."""
        if item.split != self.split and self.filled:
            self.write(item.position, 0)
        self.split = item.split
        taken, self.skip = self.skip, 0
        if taken == 0:  # otherwise the interrupted command has counted this item
            self.progress.documents += tokens.documents
            self.progress.bytes += tokens.bytes
            self.progress.share += item.share
        while taken < len(tokens.ids):
            part = tokens.ids[taken : taken + len(self.buffer) - self.filled]
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            taken += len(part)
            if self.filled == len(self.buffer):
                self.write(item.position, taken)

    def write(self, position, skip):
        """Write the buffer as a shard. The next one begins `skip` tokens into the item at `position`."""
        progress, split = self.progress, self.split
        if split is None:
            split = "train" if progress.shards or progress.worker else "val"
        index = progress.worker + progress.num_workers * len(progress.shards)
        path = progress.out / shard_name(self.name, index, self.suffix, split)
        try:
            if progress.replaces:
                check_split_sizes(progress, [{"file": path.name, "tokens": self.filled}], splits=("val",))
                progress.begin()
            entry = write_shard(path, self.buffer[: self.filled])
            progress.position, progress.skip, progress.seconds = position, skip, time.monotonic() - self.start
            progress.shards.append(entry)
            self.filled = 0
            progress.save()
        except OSError as error:
            raise self.not_written(path, error) from error

    def not_written(self, path, error):
        """The `UserError` for a shard that could not be written."""
        kept = f"kept: {format_count(len(self.progress.shards), 'finished shard')}"
        if error.errno not in NO_SPACE:
            return UserError(
                f"{path} cannot be written ({error.strerror or error}); {kept}. Run the same command again"
            )
        need = 2 * (self.expected_tokens() - self.progress.shard_token_count())
        free = shutil.disk_usage(self.progress.out).free
        return UserError(
            f"no space left for {path}: about {format_bytes(need)} more are needed, {format_bytes(free)} are free;"
            f" {kept}. Free some space and run the same command again"
        )

    def close(self):
        """Write what is left in the buffer as the last shard."""
        if self.filled:
            self.write(None, 0)


# ---- after ----


def finish(progress, **facts):
    """Write `meta.json` if every worker has finished; returns its content, or None while others are working.

    `facts` are added to it.
    """
    progress.finished = True
    if progress.num_workers == 1:
        check_split_sizes(progress, progress.shards)
    progress.save()
    paths = progress_files(progress.out)
    try:
        workers = [Progress.load(path) for path in paths]
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # another worker has just written meta.json
            return read_meta(progress.out)
        raise
    if len(workers) < progress.num_workers or not all(worker.finished for worker in workers):
        return None
    shards = sorted((entry for worker in workers for entry in worker.shards), key=lambda entry: entry["file"])
    check_split_sizes(progress, shards)
    tokens, size = sum(entry["tokens"] for entry in shards), sum(worker.bytes for worker in workers)
    meta = {
        "tokenizer": progress.request["tokenizer"],
        "source": progress.request["source"],
        "request": progress.request,
        "documents": sum(worker.documents for worker in workers),
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": round(size / tokens, 4),
        "seconds": round(sum(worker.seconds for worker in workers), 2),
        **facts,
        "shards": shards,
    }
    with writing(progress.out / "meta.json"):
        write_meta(progress.out, meta)
    for path in paths:
        path.unlink(missing_ok=True)
    return meta


def check_split_sizes(progress, shards, splits=("val", "train")):
    """Raise `UserError` if a split is too short for one window, and delete the shards that this command has written."""
    for split in splits:
        tokens = sum(entry["tokens"] for entry in shards if split_of(entry["file"]) == split)
        if tokens < FEWEST_TOKENS:
            if not progress.replaces:
                delete_shards(progress.out)
            name = {"val": "validation", "train": "training"}[split]
            raise UserError(
                f"{progress.request['source']} is too short: {tokens} tokens for {name}, and one window needs at least"
                f" {FEWEST_TOKENS}; add more text"
            )


def format_bytes(size):
    """A number of bytes with its unit: "1.5 GB"."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def print_summary(meta, out):
    """Print what `meta.json` says about a finished folder, and the command that trains on it."""
    rate = meta["tokens"] / max(meta["seconds"], 1e-9)
    print(
        f"{meta['documents']:,} documents, {meta['tokens']:,} tokens, {meta['bytes_per_token']:.2f} bytes a token,"
        f" {format_count(len(meta['shards']), 'shard')}, {meta['seconds']:.1f} s ({rate:,.0f} tok/s)"
    )
    if "chat" in meta:
        print(describe_chat(meta["chat"], meta["tokens"]))
    print(f"next: {training_command(meta, out)}")


def describe_chat(chat, total):
    """What the windows of conversations hold, of `total` tokens; `chat` is that entry of `meta.json`."""
    cut = f"; {format_count(chat['cut'], 'conversation')} cut at {chat['T']:,} tokens" if chat["cut"] else ""
    return (
        f"windows of {chat['T']:,} tokens: {chat['counted'] / total:.0%} are answers, which the loss counts,"
        f" {1 - chat['tokens'] / total:.0%} are padding{cut}"
    )


def training_command(meta, out):
    """The command that trains on a finished folder, with the recipe for its kind or size."""
    if "chat" in meta:
        return (
            f"python train_gpt2.py config/finetune_chat.py --data_dir {shlex.quote(str(out))} --T {meta['chat']['T']}"
        )
    tokens = sum(entry["tokens"] for entry in meta["shards"] if split_of(entry["file"]) == "train")
    recipe = "config/own_text.py " if tokens < SMALL_CORPUS else ""
    return f"python train_gpt2.py {recipe}--data_dir {shlex.quote(str(out))}"
