"""Filling a folder with shards so that it can be interrupted at any moment and continued to the same bytes.

While shards are missing, `progress.json` says what was asked for, which shards are whole, and where in the text the
next one begins. When all are there `meta.json` takes its place. A folder with the one and not the other is unfinished.
"""

import dataclasses
import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from system.errors import UserError
from system.files import NO_SPACE, AtomicFile
from tokens.shards import list_shards, progress_files, read_meta, shard_name, split_of, write_meta, write_shard

SHARD_TOKENS = 100_000_000
FEWEST_TOKENS = 33  # of a split: one short window and the token after it
OTHERWISE = "give another --out, or --overwrite to replace them"


@dataclass
class Progress:
    out: Path
    request: dict  # what was asked for; only the same request may go on. Has "source", "tokenizer" and "format"
    worker: int = 0
    num_workers: int = 1
    shard_tokens: int = SHARD_TOKENS
    plan: dict = field(default_factory=dict)  # what must not change on the way, such as the list of files
    shards: list = field(default_factory=list)  # the finished ones, as in `meta.json`
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

    def save(self):
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "out"}
        with AtomicFile(self.path) as f:
            f.write(json.dumps(values).encode())


def open_progress(out, request, overwrite=False, worker=0, num_workers=1):
    """Begin, or go on with, what fills `out`; None where it is already filled with just this.

    Raises `UserError` where `out` holds anything else, unless `overwrite`: then its shards are deleted.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected a folder to write shards to; give another --out")
    if overwrite:
        clear(out)
    fresh = Progress(out, json.loads(json.dumps(request)), worker, num_workers)
    meta = read_meta(out)
    if meta is not None:
        if meta.get("request") != fresh.request:
            raise UserError(f"{out} already holds {difference(meta.get('request'), fresh.request)}; {OTHERWISE}")
        for path in progress_files(out):  # left where a run was killed after its last word
            path.unlink(missing_ok=True)
        return None
    for path in progress_files(out):
        found = Progress(out, **json.loads(path.read_text(encoding="utf-8")))
        if found.request != fresh.request and not found.shards:
            path.unlink()  # stopped before it had anything to show
        elif found.request != fresh.request:
            raise UserError(f"{out} holds the beginning of {difference(found.request, fresh.request)}; {OTHERWISE}")
        elif path == fresh.path:
            return found
    if not progress_files(out) and (list_shards(out, "train") or list_shards(out, "val")):
        raise UserError(f"{out} already holds shards that were made elsewhere; {OTHERWISE}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} can't be made: {error.strerror}; give another --out") from error
    return fresh


def difference(old, new):
    """What a folder holds, in words, and how that differs from what is asked for."""
    if not old:
        return "shards that were made elsewhere"
    if old["source"] != new["source"]:
        return f"shards of {old['source']}"
    keys = [key for key in new if old.get(key) != new[key]]
    if keys == ["files"]:
        return f"shards of {old['source']}, whose files have changed since"
    return f"shards of {old['source']} with " + ", ".join(f"{k} {old.get(k)}" for k in keys if k != "files")


def clear(out):
    """Delete shards and what describes them, and nothing else that lies in the folder."""
    meta = [out / "meta.json"]  # first, so that the rest never looks whole
    for path in meta + progress_files(out) + list_shards(out, "train") + list_shards(out, "val"):
        path.unlink(missing_ok=True)


class ShardWriter:
    """Joins tokens into shards of `progress.shard_tokens`; the last of a split is shorter."""

    def __init__(self, progress, name):
        self.progress, self.name = progress, name
        self.suffix = "." + progress.request["format"]
        self.buffer = np.empty(progress.shard_tokens, np.uint16)
        self.filled = 0
        self.split = None  # of what is in the buffer
        self.skip = progress.skip
        self.since = time.monotonic() - progress.seconds
        progress.save()  # before the first shard, which without it would look like a whole folder's

    def tokens(self):
        """Tokens so far, unwritten ones included."""
        return sum(entry["tokens"] for entry in self.progress.shards) + self.filled

    def expected_tokens(self):
        """Tokens in the end, if the rest is like what was seen."""
        return round(self.tokens() / max(self.progress.share, 1e-12))

    def add(self, item, tokens):
        if item.split != self.split and self.filled:
            self.write(item.position, 0)
        self.split = item.split
        taken, self.skip = self.skip, 0
        if taken == 0:  # else a run before this one has counted it
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
        """Write the buffer as the next shard; the one after it begins `skip` tokens into the item at `position`."""
        progress = self.progress
        split = self.split or ("train" if progress.shards or progress.worker else "val")
        index = progress.worker + progress.num_workers * len(progress.shards)
        path = progress.out / shard_name(self.name, index, self.suffix, split)
        try:
            entry = write_shard(path, self.buffer[: self.filled])
            progress.position, progress.skip, progress.seconds = position, skip, time.monotonic() - self.since
            progress.shards.append(entry)
            self.filled = 0
            progress.save()
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            need = 2 * (self.expected_tokens() - sum(entry["tokens"] for entry in progress.shards))
            free = shutil.disk_usage(progress.out).free
            raise UserError(
                f"no space left for {path}: about {in_words(need)} more are needed, {in_words(free)} are free;"
                f" {len(progress.shards)} finished shards stay good. Make room and run the same command again"
            ) from error

    def close(self):
        if self.filled:
            self.write(None, 0)


def finish(progress):
    """Write `meta.json` once every worker has finished; returns it, or None while others are at work."""
    progress.finished = True
    progress.save()
    paths = progress_files(progress.out)
    try:
        all_of_them = [Progress(progress.out, **json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    except FileNotFoundError:  # another worker has just written meta.json
        return read_meta(progress.out)
    if len(all_of_them) < progress.num_workers or not all(p.finished for p in all_of_them):
        return None
    shards = sorted((entry for p in all_of_them for entry in p.shards), key=lambda entry: entry["file"])
    refuse_too_few(progress, shards)
    tokens, size = sum(entry["tokens"] for entry in shards), sum(p.bytes for p in all_of_them)
    meta = {
        "tokenizer": progress.request["tokenizer"],
        "source": progress.request["source"],
        "request": progress.request,
        "documents": sum(p.documents for p in all_of_them),
        "tokens": tokens,
        "bytes": size,
        "bytes_per_token": round(size / tokens, 4),
        "seconds": round(sum(p.seconds for p in all_of_them), 2),
        "shards": shards,
    }
    write_meta(progress.out, meta)
    for path in paths:
        path.unlink(missing_ok=True)
    return meta


def refuse_too_few(progress, shards):
    """Raise `UserError`, and take the shards away, where a split is too short for a single window."""
    for split in ("val", "train"):
        tokens = sum(entry["tokens"] for entry in shards if split_of(entry["file"]) == split)
        if tokens < FEWEST_TOKENS:
            clear(progress.out)
            part = "validation" if split == "val" else "training"
            raise UserError(
                f"{progress.request['source']} is too short: {tokens} tokens for {part}, and one window needs at least"
                f" {FEWEST_TOKENS}; add more text"
            )


def in_words(size):
    """Bytes, readable."""
    unit = next(unit for unit in (1e9, 1e6, 1e3) if size >= unit or unit == 1e3)
    return f"{size / unit:.1f} {({1e9: 'GB', 1e6: 'MB', 1e3: 'kB'})[unit]}"


def print_summary(meta, out):
    rate = meta["tokens"] / max(meta["seconds"], 1e-9)
    print(
        f"{meta['documents']:,} documents, {meta['tokens']:,} tokens, {meta['bytes_per_token']:.2f} bytes a token,"
        f" {len(meta['shards'])} shards, {meta['seconds']:.1f} s ({rate:,.0f} tok/s)"
    )
    print(f"next: python train_gpt2.py --data_dir {out}")
