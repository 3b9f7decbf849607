"""Download FineWeb-Edu (or FineWeb) and tokenize it into shards.

    python fineweb.py                     # sample-10BT: 10^10 tokens, 100 shards, in edu_fineweb10B/
    python fineweb.py --fraction 0.001    # the first thousandth, for a trial: only that part is downloaded

Interrupted at any moment, the same command continues after the last finished shard, to the same bytes. On a cluster,
each worker (`--worker I --num_workers N`) tokenizes one contiguous part of the same sequence of documents.
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
from text.documents import cut_file, find_files, fingerprint, is_jsonl, is_parquet, open_parquet
from text.encoding import get_tokenizer_once, tokenize_texts
from text.retry import Retry, endpoint, show_library_retries
from text.shard_writer import (
    SHARD_TOKENS,
    Item,
    finish,
    format_bytes,
    open_progress,
    print_summary,
    write_shards,
)
from text.worker_pool import cpu_count
from tokens.shards import read_meta
from tokens.tokenizer import TokenizerName

REPOS = {"edu": "HuggingFaceFW/fineweb-edu", "classic": "HuggingFaceFW/fineweb"}
SHARD_NAMES = {"edu": "edufineweb", "classic": "fineweb"}
FOLDERS = {"edu": "edu_fineweb", "classic": "fineweb"}
FEWEST_SHARDS = 20


@dataclass(frozen=True)
class Settings:
    """Download FineWeb-Edu and tokenize it into shards."""

    version: Literal["edu", "classic"] = "edu"
    """edu (educational pages) or classic (all of FineWeb)"""
    subset: str = "sample-10BT"
    """sample-10BT, sample-100BT, sample-350BT, or one crawl: CC-MAIN-2024-10, ..."""
    fraction: float = 1.0
    """use only this first fraction of the documents, in file order, and download no more"""
    shard_tokens: int | None = None
    """tokens per shard; default: 100,000,000, or a twentieth of all tokens if that is less"""
    format: Literal["npy", "bin"] = "npy"
    """npy (NumPy) or bin (llm.c)"""
    tokenizer: TokenizerName = "gpt2"
    """gpt2 or byte"""
    out: str | None = None
    """folder for the shards; default: edu_fineweb10B and the like"""
    source: str | None = None
    """read this file, folder or pattern of .parquet or .jsonl with a text column, instead of the hub"""
    streaming: bool = False
    """tokenize while downloading, and keep no copy of the text on disk"""
    num_proc: int = cpu_count()
    """worker processes"""
    worker: int = 0
    """on a cluster: the number of this worker, 0 ... num_workers - 1"""
    num_workers: int = 1
    """on a cluster: how many workers share the work, all with the same --out"""
    patience: float = 600.0
    """seconds to retry when the network fails, before giving up"""
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
    out = default_folder(settings) if settings.out is None else settings.out
    paths = source_files(settings.source)
    request = make_request(settings, paths)
    progress = open_progress(out, request, settings.overwrite, settings.worker, settings.num_workers)
    if progress is None:
        print(f"{out} already holds just this, finished")
        print_summary(read_meta(out), out)
        return
    retry = Retry(settings.patience, "--fraction 0.001")
    if progress.plan:
        print(f"{out}: continuing after {len(progress.shards)} finished shards", flush=True)
        corpus = Corpus(progress.plan["files"], settings, retry)
    else:
        corpus = Corpus(list_files(settings, paths, retry), settings, retry)
        plan_shards(progress, corpus, settings.shard_tokens)
    if progress.finished:
        meta = finish(progress)
    else:
        items = corpus.stream_items(progress.position)
        meta = write_shards(progress, items, settings.num_proc, SHARD_NAMES[settings.version], retry.wait)
    if meta is None:
        done = f"worker {settings.worker} has finished its part, {len(progress.shards)} shards"
        print(f"{out}: {done}; the last worker to finish writes meta.json")
    else:
        print(f"{out}: ", end="")
        print_summary(meta, out)


def default_folder(settings):
    """ "edu_fineweb10B" for sample-10BT, "edu_fineweb_CC-MAIN-2024-10" for a crawl."""
    if settings.subset.startswith("sample-"):
        return FOLDERS[settings.version] + settings.subset.removeprefix("sample-").replace("T", "")
    return f"{FOLDERS[settings.version]}_{settings.subset}"


def source_files(source):
    """The files of --source; None without it."""
    if source is None:
        return None
    paths = [path for path in find_files(source) if is_parquet(path) or is_jsonl(path)]
    if not paths:
        raise UserError(f"--source {source}: expected .parquet or .jsonl files with a text column")
    return paths


def make_request(settings, paths):
    """The settings that determine the shards; streaming and the number of processes do not."""
    keys = ("version", "subset", "fraction", "shard_tokens", "format", "tokenizer", "num_workers")
    request = {key: getattr(settings, key) for key in keys}
    if paths is None:
        return request | {"source": f"{REPOS[settings.version]} {settings.subset}"}
    return request | {"source": settings.source, "files": fingerprint(paths)}


def list_files(settings, paths, retry):
    """The files in order: [[path or url, weight]]. A weight is a file's size, in rows or bytes."""
    if paths is None:
        action = "looking in the cache" if hub.is_offline() else f"asking {endpoint()}"
        print(f"{action} for the files of {REPOS[settings.version]} {settings.subset}", flush=True)
        show_library_retries()
        return retry.call(hub.list_data_files, REPOS[settings.version], settings.subset)
    if all(map(is_parquet, paths)):
        return [(path, open_parquet(path).metadata.num_rows) for path in paths]
    return [(path, os.path.getsize(path)) for path in paths]


def plan_shards(progress, corpus, asked):
    """Save the list of files and the size of a shard (`asked`, or None for the default), and print the plan."""
    progress.plan = {"files": corpus.files}
    expected = corpus.expected_tokens()
    progress.shard_tokens = choose_shard_tokens(asked, expected)
    progress.save()
    need, free = 2 * expected, shutil.disk_usage(progress.out).free
    print(
        f"{len(corpus.parts)} files, about {expected:,} tokens: {math.ceil(expected / progress.shard_tokens)} shards of"
        f" {progress.shard_tokens:,}, {format_bytes(need)} in {progress.out}",
        flush=True,
    )
    if free < need:
        print(f"warning: only {format_bytes(free)} are free there; the command stops when they are used", flush=True)


def choose_shard_tokens(asked, expected):
    """Tokens per shard, small enough that there is a training shard after the one for validation."""
    if asked is None:
        return max(1, min(SHARD_TOKENS, math.ceil(expected / FEWEST_SHARDS)))
    return max(1, min(asked, expected // 2))


class Corpus:
    """The part of the documents that this worker tokenizes, as pieces, in order."""

    def __init__(self, files, settings, retry):
        """`files`: [(path or url, weight)]. A worker's part, and --fraction, may begin and end inside a file."""
        self.files, self.settings, self.retry = files, settings, retry
        self.all_parts = cut_sequence(files, 0, settings.fraction)
        edges = [settings.fraction * (settings.worker + i) / settings.num_workers for i in (0, 1)]
        self.parts = cut_sequence(files, *edges)
        self.futures = {}  # index of a part → future of the path or url to read it from
        self.received = {}  # index of a part → bytes downloaded so far

    def expected_tokens(self):
        """Estimate the tokens of all workers from the first tenth of the texts of the first piece."""
        url, start, stop, _ = self.all_parts[0]
        path = hub.locate(url, stream=True)
        piece, share = self.retry.call(lambda: next(cut_file(path, start, stop)))
        texts = self.retry.call(piece.texts)
        sample = texts[: max(1, len(texts) // 10)]
        tokens = len(tokenize_texts(sample, get_tokenizer_once(self.settings.tokenizer)).ids)
        work = sum(weight for *_, weight in self.all_parts)
        return round(tokens * sum(map(len, texts)) / sum(map(len, sample)) / (share * dict(self.files)[url]) * work)

    def stream_items(self, position):
        """Yield items, starting at `position`: [index of the part, number of the piece in it], or None."""
        first_part, first_piece = (0, 0) if position is None else position
        work = sum(weight for *_, weight in self.parts)
        for index in range(first_part, len(self.parts)):
            _, start, stop, weight = self.parts[index]
            path = self.locate(index)
            if hub.is_remote(path):
                self.retry.call(open_parquet, path)
            for number, (piece, share) in enumerate(cut_file(path, start, stop)):
                if index > first_part or number >= first_piece:
                    self.retry.reset()  # a piece is only requested after an earlier one has arrived
                    yield Item([index, number], None, share / (stop - start) * weight / work, piece)

    def locate(self, index):
        """The path or url to read a part from; the next part is downloaded in the background."""
        name = self.parts[index][0].rpartition("/")[2]
        with tqdm(unit="B", unit_scale=True, desc=f"fetching {name}", leave=False, delay=0.5, disable=None) as bar:
            path = self.retry.call(self.wait_for, index, bar)
        if index + 1 < len(self.parts):
            self.fetch(index + 1)
        return path

    def wait_for(self, index, bar):
        """The result of `fetch`, showing the progress in `bar`."""
        future = self.fetch(index)
        while not concurrent.futures.wait([future], timeout=0.2).done:
            bar.update(self.received.get(index, 0) - bar.n)
        return future.result()

    def fetch(self, index):
        """The future of the path or url of a part. With --streaming, or if only a part is needed, that is the url."""
        future = self.futures.get(index)
        if future is None or (future.done() and future.exception()):
            url, start, stop, _ = self.parts[index]
            stream = self.settings.streaming or (start, stop) != (0.0, 1.0)
            on_bytes = functools.partial(self.received.__setitem__, index)
            future = self.futures[index] = hub.in_background(hub.locate, url, stream, on_bytes)
        return future


def cut_sequence(files, start, stop):
    """The part from `start` to `stop` (0 … 1) of a sequence of files [(path, weight)].

    Returns [(path, from, to, weight)]: `from` and `to` are fractions of the file, and `weight` is that of the part.
    """
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
