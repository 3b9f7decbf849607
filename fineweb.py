"""FineWeb-Edu (or FineWeb), tokenized for GPT-2 into shards.

    python fineweb.py                     # sample-10BT: 10^10 tokens, 100 shards, in edu_fineweb10B/
    python fineweb.py --fraction 0.001    # the first thousandth, to try it: only that is downloaded

Interrupted at any moment, the same command goes on after the last whole shard, to the same bytes. The share of a
worker of a cluster (`--worker I --num_workers N`) is a stretch of the same row of documents.
"""

import concurrent.futures
import functools
import math
import os
import shutil
from dataclasses import dataclass
from typing import Literal

from tqdm import tqdm

from configurator import configure
from system.errors import UserError, command
from text import hub
from text.documents import cut_file, find_files, fingerprint, is_jsonl, is_parquet, is_remote, open_parquet
from text.encoding import Item, make_shards, tokenize_texts
from text.shard_writer import SHARD_TOKENS, finish, in_words, open_progress, print_summary
from text.workers import cores
from tokens.shards import read_meta
from tokens.tokenizer import get_tokenizer

REPOS = {"edu": "HuggingFaceFW/fineweb-edu", "classic": "HuggingFaceFW/fineweb"}
NAMES = {"edu": "edufineweb", "classic": "fineweb"}  # of the shards
FOLDERS = {"edu": "edu_fineweb", "classic": "fineweb"}
FEWEST_SHARDS = 20


@dataclass(frozen=True)
class Settings:
    """Download and tokenize FineWeb-Edu."""

    version: Literal["edu", "classic"] = "edu"
    """edu (educational pages) or classic (all of FineWeb)"""
    subset: str = "sample-10BT"
    """sample-10BT, sample-100BT, sample-350BT, or one crawl: CC-MAIN-2024-10, ..."""
    fraction: float = 1.0
    """only the first part of the documents, in file order; no more than that is downloaded"""
    shard_tokens: int | None = None
    """tokens a shard; default: 100,000,000, or a twentieth of all tokens where that is less"""
    format: Literal["npy", "bin"] = "npy"
    """npy (NumPy) or bin (llm.c)"""
    tokenizer: Literal["gpt2", "byte"] = "gpt2"
    """gpt2 or byte"""
    out: str | None = None
    """folder for the shards; default: edu_fineweb10B and the like"""
    source: str | None = None
    """a file, folder or pattern of .parquet or .jsonl with a text column, already on disk, instead of the hub"""
    streaming: bool = False
    """tokenize while downloading, and keep no copy of the text on disk"""
    num_proc: int = cores()
    """worker processes"""
    worker: int = 0
    """on a cluster: which worker this is, 0 ... num_workers - 1"""
    num_workers: int = 1
    """on a cluster: how many workers share the work, all with the same --out"""
    patience: float = 600.0
    """seconds to wait for a network that doesn't answer, before giving up"""
    overwrite: bool = False
    """replace the shards that --out already holds"""

    def check(self):
        if not 0 < self.fraction <= 1:
            raise UserError(f"--fraction {self.fraction}: expected a part of the documents, such as 0.001; 1 is all")
        if self.num_proc < 1:
            raise UserError(f"--num_proc {self.num_proc}: expected 1 or more")
        if self.shard_tokens is not None and self.shard_tokens < 1:
            raise UserError(f"--shard_tokens {self.shard_tokens}: expected 1 or more")
        if not 0 <= self.worker < self.num_workers:
            raise UserError(f"--worker {self.worker}: expected 0 ... {self.num_workers - 1} (--num_workers less one)")
        if self.overwrite and self.num_workers > 1:
            raise UserError("--overwrite with --num_workers would delete other workers' shards; empty --out by hand")


@command
def main(argv=None):
    settings = configure(Settings, argv)
    out = settings.out or default_folder(settings)
    paths = source_files(settings.source)
    request = make_request(settings, paths)
    progress = open_progress(out, request, settings.overwrite, settings.worker, settings.num_workers)
    if progress is None:
        print(f"{out} already holds just this, finished")
        print_summary(read_meta(out), out)
        return
    patience = hub.Patience(settings.patience, "--fraction 0.001")
    if progress.plan:
        print(f"{out}: going on after {len(progress.shards)} finished shards", flush=True)
        corpus = Corpus(progress.plan["files"], settings, patience)
    else:
        corpus = Corpus(list_files(settings, paths, patience), settings, patience)
        progress.plan = {"files": corpus.files}
        expected = corpus.expected_tokens()
        progress.shard_tokens = plan_shards(settings.shard_tokens, expected)
        progress.save()
        say_plan(progress, corpus, expected)
    if progress.finished:
        meta = finish(progress)
    else:
        items = corpus.stream(progress.position)
        meta = make_shards(progress, items, settings.num_proc, NAMES[settings.version], patience.wait)
    if meta is None:
        done = f"worker {settings.worker} has finished its share, {len(progress.shards)} shards"
        print(f"{out}: {done}; meta.json comes with the last worker's")
    else:
        print(f"{out}: ", end="")
        print_summary(meta, out)


def default_folder(settings):
    size = settings.subset.removeprefix("sample-").replace("T", "") if settings.subset.startswith("sample-") else None
    return FOLDERS[settings.version] + (size or f"_{settings.subset}")


def source_files(source):
    """The files that --source names, or None."""
    if source is None:
        return None
    paths = [path for path in find_files(source) if is_parquet(path) or is_jsonl(path)]
    if not paths:
        raise UserError(f"--source {source}: expected .parquet or .jsonl files with a text column")
    return paths


def make_request(settings, paths):
    """What makes the shards what they are; how they are made (streaming, worker processes) is no part of it."""
    keys = ("version", "subset", "fraction", "shard_tokens", "format", "tokenizer", "num_workers")
    request = {key: getattr(settings, key) for key in keys}
    if paths is None:
        return request | {"source": f"{REPOS[settings.version]} {settings.subset}"}
    return request | {"source": settings.source, "files": fingerprint(paths)}


def list_files(settings, paths, patience):
    """[[path or url, weight]] in order. The weights say how far into the corpus a file lies: documents or bytes."""
    if paths is None:
        where = "looking in the cache" if hub.offline() else f"asking {hub.endpoint()}"
        print(f"{where} for the files of {REPOS[settings.version]} {settings.subset}", flush=True)
        hub.announce_waits()
        return patience.call(hub.list_data_files, REPOS[settings.version], settings.subset)
    if all(map(is_parquet, paths)):
        return [(path, open_parquet(path).metadata.num_rows) for path in paths]
    return [(path, os.path.getsize(path)) for path in paths]


def plan_shards(asked, expected):
    """Tokens a shard, such that there are training shards beside the one for validation."""
    if asked is None:
        return max(1, min(SHARD_TOKENS, math.ceil(expected / FEWEST_SHARDS)))
    return max(1, min(asked, expected // 2))


def say_plan(progress, corpus, expected):
    need, free = 2 * expected, shutil.disk_usage(progress.out).free
    print(
        f"{len(corpus.parts)} files, about {expected:,} tokens: {math.ceil(expected / progress.shard_tokens)} shards of"
        f" {progress.shard_tokens:,}, {in_words(need)} in {progress.out}",
        flush=True,
    )
    if free < need:
        print(f"warning: only {in_words(free)} are free there, and it will stop when they are full", flush=True)


class Corpus:
    """The stretch of the documents that this worker is to do, as pieces, in order."""

    def __init__(self, files, settings, patience):
        """`files`: [(path or url, weight)]. A worker's stretch, and a fraction, begin and end anywhere in a file."""
        self.files, self.settings, self.patience = files, settings, patience
        self.all_parts = cut_row(files, 0, settings.fraction)
        edges = [settings.fraction * (settings.worker + i) / settings.num_workers for i in (0, 1)]
        self.parts = cut_row(files, *edges)
        self.futures, self.received = {}, {}  # by number of the part: where it can be read, bytes that have come

    def expected_tokens(self):
        """Tokens of all workers together, if all documents are like the first few."""
        url, start, stop, _ = self.all_parts[0]
        path = find_copy(url, True)
        piece, share = self.patience.call(lambda: next(cut_file(path, start, stop)))
        texts = self.patience.call(piece.texts)
        sample = texts[: max(1, len(texts) // 10)]
        tokens = len(tokenize_texts(sample, get_tokenizer(self.settings.tokenizer)).ids)
        work = sum(weight for *_, weight in self.all_parts)
        return round(tokens * sum(map(len, texts)) / sum(map(len, sample)) / (share * dict(self.files)[url]) * work)

    def stream(self, position):
        """Yield items from `position` on: [file, piece in it]."""
        first_file, first_piece = position or (0, 0)
        work = sum(weight for *_, weight in self.parts)
        for index in range(first_file, len(self.parts)):
            _, start, stop, weight = self.parts[index]
            path = self.locate(index)
            if is_remote(path):
                self.patience.call(open_parquet, path)
            for number, (piece, share) in enumerate(cut_file(path, start, stop)):
                if index > first_file or number >= first_piece:
                    self.patience.reset()  # a new piece is asked for when an earlier one has arrived
                    yield Item([index, number], None, share / (stop - start) * weight / work, piece)

    def locate(self, index):
        """Where to read a part from: a file on disk, or a url, where only a part is wanted or with `--streaming`."""
        name = self.parts[index][0].rpartition("/")[2]
        with tqdm(unit="B", unit_scale=True, desc=f"fetching {name}", leave=False, delay=0.5) as bar:
            path = self.patience.call(self.wait_for, index, bar)
        if index + 1 < len(self.parts):
            self.fetch(index + 1)  # comes while this one is tokenized
        return path

    def wait_for(self, index, bar):
        future = self.fetch(index)
        while not concurrent.futures.wait([future], timeout=0.2).done:
            bar.update(self.received.get(index, 0) - bar.n)
        return future.result()

    def fetch(self, index):
        """A future of where part `index` can be read."""
        future = self.futures.get(index)
        if future is None or (future.done() and future.exception()):
            url, start, stop, _ = self.parts[index]
            stream = self.settings.streaming or (start, stop) != (0.0, 1.0)
            on_bytes = functools.partial(self.received.__setitem__, index)
            future = self.futures[index] = hub.in_background(find_copy, url, stream, on_bytes)
        return future


def find_copy(path, *args):
    return hub.find_copy(path, *args) if is_remote(path) else path


def cut_row(files, start, stop):
    """Where the stretch from `start` to `stop` (0 … 1) of files in a row lies: [(path, from, to, weight)], 0 … 1."""
    total = sum(weight for _, weight in files)
    parts, before = [], 0
    for path, weight in files:
        a, b = (min(max((edge * total - before) / weight, 0.0), 1.0) if weight else 0.0 for edge in (start, stop))
        if a < b:
            parts.append((path, a, b, (b - a) * weight))
        before += weight
    return parts


if __name__ == "__main__":
    main()
