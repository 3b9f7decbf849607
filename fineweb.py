"""Download FineWeb-Edu (or FineWeb) and tokenize it into shards.

    python fineweb.py                     # sample-10BT: 10^10 tokens, 100 shards, in edu_fineweb10B/
    python fineweb.py --fraction 0.001    # the first thousandth, for a trial: only that part is downloaded

Interrupted at any moment, the same command continues after the last finished shard, to the same bytes. On a cluster,
each worker (`--worker I --num_workers N`) tokenizes one contiguous part of the same sequence of documents.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import functools
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from configurator import Range, configure
from system.background import in_background
from system.errors import UserError, command
from system.lock import folder_lock
from text import hub
from text.documents import cut_file, describe_files, find_files, fingerprint, is_jsonl, is_parquet
from text.encoding import estimate_tokens
from text.progress import LARGEST_SHARD, SHARD_TOKENS, open_progress, read_finished
from text.retry import Retry, endpoint
from text.shard_writer import Item, finish, format_bytes, print_summary, write_shards
from text.worker_pool import MOST_PROCESSES, cpu_count, map_in_order
from system.words import format_count
from tokens.tokenizer import TokenizerName

REPOS = {"edu": "HuggingFaceFW/fineweb-edu", "classic": "HuggingFaceFW/fineweb"}
SHARD_NAMES = {"edu": "edufineweb", "classic": "fineweb"}
FOLDERS = {"edu": "edu_fineweb", "classic": "fineweb"}
FEWEST_SHARDS = 20
MOST_WORKERS = 99_999  # names of progress files have five digits


@dataclass(frozen=True)
class Settings:
    """Download FineWeb-Edu and tokenize it into shards."""

    version: Literal["edu", "classic"] = "edu"
    """edu (educational pages) or classic (all of FineWeb)"""
    subset: str = "sample-10BT"
    """sample-10BT, sample-100BT, sample-350BT, or one crawl: CC-MAIN-2024-10, ..."""
    fraction: Annotated[float, Range(0, 1, excluded=0)] = 1.0
    """use only this first fraction of the documents, in file order, and download no more"""
    shard_tokens: Annotated[int | None, Range(1, LARGEST_SHARD)] = None
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
    num_proc: Annotated[int, Range(1, MOST_PROCESSES)] = cpu_count()
    """worker processes"""
    worker: int = 0
    """on a cluster: the number of this worker, 0 ... num_workers - 1"""
    num_workers: Annotated[int, Range(1, MOST_WORKERS)] = 1
    """on a cluster: how many workers share the work, all with the same --out"""
    patience: Annotated[float, Range(0)] = 600.0
    """seconds to retry when the network fails, before giving up"""
    overwrite: bool = False
    """replace the shards that --out already holds"""

    def check(self):
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
    meta = None if settings.overwrite else read_finished(out, request)
    if meta is not None:
        print(f"{out} already holds just this, finished")
    else:
        with folder_lock(lock_folder(out, settings)):
            meta = fill(out, request, paths, settings)
    if meta is not None:
        print(f"{out}: ", end="")
        print_summary(meta, out)


def fill(out, request, paths, settings):
    """Tokenize this worker's part into `out`; returns `meta.json`, or None while other workers have not finished."""
    progress = open_progress(out, request, settings.overwrite, settings.worker, settings.num_workers)
    if progress is None:
        return read_finished(out, request)  # another process has just finished it
    retry = Retry(settings.patience, "--fraction 0.001")
    if progress.plan:
        print(f"{out}: continuing after {format_count(len(progress.shards), 'finished shard')}", flush=True)
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
        done = f"worker {settings.worker} has finished its part, {format_count(len(progress.shards), 'shard')}"
        print(f"{out}: {done}; the last worker to finish writes meta.json")
    return meta


def lock_folder(out, settings):
    """The folder that this process locks: `out`, or one for each worker of a cluster, which share `out`."""
    if settings.num_workers == 1:
        return Path(out)
    return Path(out, f".worker_{settings.worker}_of_{settings.num_workers}")


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
        hub.make_single_attempts()
        return retry.call(hub.list_data_files, REPOS[settings.version], settings.subset)
    files = describe_files(paths)
    if all(map(is_parquet, paths)):
        return [(file.path, sum(rows for rows, _ in file.groups)) for file in files]
    return [(file.path, file.size) for file in files]


def plan_shards(progress, corpus, asked):
    """Save the list of files and the size of a shard (`asked`, or None for the default), and print the plan."""
    progress.plan = {"files": corpus.files}
    expected = corpus.expected_tokens()
    progress.shard_tokens = choose_shard_tokens(asked, expected)
    progress.save_plan()
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
        self.described = {}  # path → `TextFile`
        self.futures = {}  # index of a part → future of the path or url to read it from
        self.received = {}  # index of a part → bytes downloaded so far

    def expected_tokens(self):
        """Estimate the tokens of all workers from the first piece that holds text, which a worker process reads."""
        function, share = functools.partial(estimate_tokens, tokenizer_name=self.settings.tokenizer), 0.0
        items = self.cut_parts(self.all_parts, lambda index: hub.locate(self.all_parts[index][0], stream=True))
        workers = 1 if any(is_parquet(path) for path, _ in self.files) else 0
        for item, tokens in map_in_order(function, items, workers, self.retry.wait):
            share += item.share
            if tokens:
                return max(1, round(tokens / share))
        source = self.settings.source or f"{REPOS[self.settings.version]} {self.settings.subset}"
        raise UserError(f"{source} holds no text in its first {self.settings.fraction:g}; give a larger --fraction")

    def stream_items(self, position):
        """Yield the items of this worker, starting at `position`: [index of the part, number of the piece in it]."""
        return self.cut_parts(self.parts, self.locate, position)

    def cut_parts(self, parts, locate, position=None):
        """Yield items; `locate(index)` returns the path or url to read a part from."""
        first_part, first_piece = (0, 0) if position is None else position
        work = sum(weight for *_, weight in parts)
        for index in range(first_part, len(parts)):
            _, start, stop, weight = parts[index]
            file = self.describe(locate(index))
            for number, (piece, share) in enumerate(cut_file(file, start, stop)):
                if index > first_part or number >= first_piece:
                    self.retry.reset()  # a piece is only requested after an earlier one has arrived
                    yield Item([index, number], None, share / (stop - start) * weight / work, piece)

    def describe(self, path):
        """The `TextFile` of a path or url. Local files are described together, by one worker process."""
        if path not in self.described:
            local = [name for name, *_ in self.all_parts if not hub.is_remote(name)]
            paths = local if path in local else [path]
            files = describe_files(paths, should_retry=self.retry.wait)
            self.described |= {file.path: file for file in files}
        return self.described[path]

    def locate(self, index):
        """The path or url to read a part from; the next part is downloaded in the background."""
        name = self.parts[index][0].rpartition("/")[2]
        with tqdm(unit="B", unit_scale=True, desc=f"fetching {name}", leave=False, delay=0.5, disable=None) as bar:

            def received():
                count = self.received.get(index, 0)
                bar.update(count - bar.n)
                return count

            path = self.retry.call(lambda: self.fetch(index).result(), received=received)
        if index + 1 < len(self.parts):
            self.fetch(index + 1)
        return path

    def fetch(self, index):
        """The future of the path or url of a part. With --streaming, or if only a part is needed, that is the url."""
        future = self.futures.get(index)
        if future is None or (future.done() and future.exception()):
            url, start, stop, _ = self.parts[index]
            stream = self.settings.streaming or (start, stop) != (0.0, 1.0)
            on_bytes = functools.partial(self.received.__setitem__, index)
            future = self.futures[index] = in_background(hub.locate, url, stream, on_bytes)
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
