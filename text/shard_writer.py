"""Write tokens into a folder of shards. Interrupted at any moment, it continues to the same bytes.

While shards are missing, `progress.json` records the request, the finished shards, and where in the text the next shard
begins. `meta.json` replaces it when all are written: a folder with `progress.json` and no `meta.json` is unfinished.
The result does not depend on the number of worker processes: pieces are tokenized anywhere and joined in order.
"""

import dataclasses
import functools
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from system.errors import UserError
from system.files import NO_SPACE, AtomicFile
from system.words import count
from text.documents import Piece
from text.encoding import tokenize
from text.worker_pool import map_in_order
from tokens.shards import list_shards, progress_files, read_meta, shard_name, split_of, write_meta, write_shard

SHARD_TOKENS = 100_000_000
FEWEST_TOKENS = 33  # of a split: one short window and the token after it
ALTERNATIVES = "give another --out, or --overwrite to replace them"


class Item(NamedTuple):
    """A piece and its place in the work."""

    position: list  # in the stream of pieces; a restart begins there
    split: str | None  # None: the first shard is validation, the others training
    share: float  # of all the work, 0 … 1
    piece: Piece


@dataclass
class Progress:
    """What `progress.json` holds (`out` excepted): the state from which an interrupted command continues."""

    out: Path
    request: dict  # the settings that determine the shards; has "source", "tokenizer" and "format"
    worker: int = 0
    num_workers: int = 1
    shard_tokens: int = SHARD_TOKENS
    plan: dict = field(default_factory=dict)  # what a restart must not compute differently, such as the list of files
    shards: list = field(default_factory=list)  # entries of finished shards, as in `meta.json`
    position: list | None = None  # of the item in which the next shard begins
    skip: int = 0  # tokens of that item that are in finished shards
    share: float = 0.0  # of the work, done
    documents: int = 0
    bytes: int = 0
    seconds: float = 0.0
    finished: bool = False

    @property
    def path(self):
        tail = f"_{self.worker:05d}_of_{self.num_workers:05d}" if self.num_workers > 1 else ""
        return self.out / f"progress{tail}.json"

    @classmethod
    def load(cls, path):
        return cls(path.parent, **json.loads(path.read_text(encoding="utf-8")))

    def save(self):
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        with AtomicFile(self.path) as f:
            f.write(json.dumps(values).encode())

    def shard_token_count(self):
        """Tokens in finished shards."""
        return sum(entry["tokens"] for entry in self.shards)


# ---- before: what does the folder hold? ----


def open_progress(out, request, overwrite=False, worker=0, num_workers=1):
    """The `Progress` to start or continue filling `out` with; None if a finished result of this request is there.

    Raises `UserError` if `out` holds anything else, unless `overwrite`, which deletes its shards.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder to write shards to; give another --out")
    if overwrite:
        delete_shards(out)
    new = Progress(out, json.loads(json.dumps(request)), worker, num_workers)
    meta = read_meta(out)
    if meta is not None:
        check_same_request(out, meta.get("request"), new.request, "already holds")
        for path in progress_files(out):  # left by a process that was killed after writing meta.json
            path.unlink(missing_ok=True)
        return None
    for path in progress_files(out):
        found = Progress.load(path)
        if found.request != new.request and not found.shards:
            path.unlink()  # interrupted before its first shard
            continue
        check_same_request(out, found.request, new.request, "holds the beginning of")
        if path == new.path:
            return found
    check_no_foreign_shards(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be created: {error.strerror}; give another --out") from error
    return new


def check_same_request(out, old, new, verb):
    """Raise `UserError` if the shards in `out` were requested with other settings."""
    if old == new:
        return
    if not old:
        raise UserError(f"{out} {verb} shards that were made elsewhere; {ALTERNATIVES}")
    keys = [key for key in new if old.get(key) != new[key]]
    if "source" in keys:
        difference = ""
    elif keys == ["files"]:
        difference = ", whose files have changed since"
    else:
        difference = " with " + ", ".join(f"{key} {old.get(key)}" for key in keys if key != "files")
    raise UserError(f"{out} {verb} shards of {old['source']}{difference}; {ALTERNATIVES}")


def check_no_foreign_shards(out):
    """Raise `UserError` if `out` holds shards without a progress file."""
    if not progress_files(out) and (list_shards(out, "train") or list_shards(out, "val")):
        raise UserError(f"{out} already holds shards that were made elsewhere; {ALTERNATIVES}")


def delete_shards(out):
    """Delete shards, `meta.json` and progress files, and nothing else in the folder."""
    meta = [out / "meta.json"]  # first, so that the remaining files never look like a finished folder
    for path in meta + progress_files(out) + list_shards(out, "train") + list_shards(out, "val"):
        path.unlink(missing_ok=True)


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
        progress.save()  # before the first shard: a folder with shards and no progress file looks finished

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
            entry = write_shard(path, self.buffer[: self.filled])
            progress.position, progress.skip, progress.seconds = position, skip, time.monotonic() - self.start
            progress.shards.append(entry)
            self.filled = 0
            progress.save()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            raise self.no_space(path) from error

    def no_space(self, path):
        need = 2 * (self.expected_tokens() - self.progress.shard_token_count())
        free = shutil.disk_usage(self.progress.out).free
        return UserError(
            f"no space left for {path}: about {format_bytes(need)} more are needed, {format_bytes(free)} are free;"
            f" {len(self.progress.shards)} finished shards are kept. Free some space and run the same command again"
        )

    def close(self):
        """Write what is left in the buffer as the last shard."""
        if self.filled:
            self.write(None, 0)


# ---- after ----


def finish(progress):
    """Write `meta.json` if every worker has finished; returns its content, or None while others are working."""
    progress.finished = True
    progress.save()
    paths = progress_files(progress.out)
    try:
        workers = [Progress.load(path) for path in paths]
    except FileNotFoundError:  # another worker has just written meta.json
        return read_meta(progress.out)
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
        "shards": shards,
    }
    write_meta(progress.out, meta)
    for path in paths:
        path.unlink(missing_ok=True)
    return meta


def check_split_sizes(progress, shards):
    """Delete the shards and raise `UserError` if a split is too short for one window."""
    for split, name in (("val", "validation"), ("train", "training")):
        tokens = sum(entry["tokens"] for entry in shards if split_of(entry["file"]) == split)
        if tokens < FEWEST_TOKENS:
            delete_shards(progress.out)
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
        f" {count(len(meta['shards']), 'shard')}, {meta['seconds']:.1f} s ({rate:,.0f} tok/s)"
    )
    print(f"next: python train_gpt2.py --data_dir {out}")
