"""Tokenize text of any kind into shards to train on.

    python prepare.py SOURCE... [--tokenizer gpt2|byte] [--out DIR] [--val 0.1] [--format npy|bin]
    python prepare.py --inspect DIR

A SOURCE is a file, folder or pattern of .txt, .md, .py, .jsonl or .parquet files, or a named source: `--help` lists
them, and text/sources.py defines them. Each plain text file, line or row is a document. If a source has no validation
split of its own, the last tenth (`--val`) of its characters becomes one.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from configurator import configure
from system.errors import UserError, command
from text.documents import LoadedTexts, cut_files, fingerprint
from text.encoding import count_characters, get_tokenizer_once
from text.retry import Retry
from text.shard_writer import Item, open_progress, print_summary, write_shards
from text.sources import EXPECTED, HELP, FetchOptions, get_source, short_name
from text.worker_pool import cpu_count, map_in_order
from tokens.inspection import inspect
from tokens.shards import read_meta
from tokens.tokenizer import TokenizerName

SINGLE_PROCESS_BYTES = 32 << 20  # one process tokenizes less text than this sooner than workers start


@dataclass(frozen=True)
class Settings:
    """Tokenize text into shards."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"{EXPECTED}. {HELP}")] = ()
    tokenizer: TokenizerName = "gpt2"
    """gpt2 (its vocabulary is downloaded once) or byte (nothing to download)"""
    out: str | None = None
    """folder for the shards; default: data/NAME after the source (data/NAME_byte for bytes)"""
    val: float = 0.1
    """fraction of each source's characters, at its end, that is validation"""
    format: Literal["npy", "bin"] = "npy"
    """npy (NumPy) or bin (llm.c)"""
    num_proc: int = cpu_count()
    """worker processes, if there is enough text for more than one"""
    mirror: str | None = None
    """a URL to download shakespeare from first (HF_ENDPOINT sets a mirror for tinystories)"""
    patience: float = 600.0
    """seconds to retry when the network fails, before giving up"""
    overwrite: bool = False
    """replace the shards that --out already holds"""
    inspect: str | None = None
    """write nothing; print what this folder of shards holds, and verify its checksums"""

    def check(self):
        if not self.sources and not self.inspect:
            raise UserError(f"prepare.py needs a source: {EXPECTED}")
        if self.sources and self.inspect:
            raise UserError("--inspect DIR writes nothing: leave out the sources")
        if not 0 < self.val < 1:
            raise UserError(f"--val {self.val}: expected a fraction of the text, between 0 and 1, such as 0.1")
        if self.num_proc < 1:
            raise UserError(f"--num_proc {self.num_proc}: expected 1 or more")
        for name in self.sources:
            if self.tokenizer in get_source(name).write and len(self.sources) > 1:
                raise UserError(f"{name} with the {self.tokenizer} tokenizer has its own shards; prepare it alone")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="sources")
    if settings.inspect:
        inspect(settings.inspect)
        return
    name = "+".join(map(short_name, settings.sources))
    suffix = "" if settings.tokenizer == "gpt2" else f"_{settings.tokenizer}"
    out = Path("data", name + suffix) if settings.out is None else Path(settings.out)
    options = FetchOptions(out, settings.mirror, Retry(settings.patience, "another source, such as stdlib"))
    progress = open_progress(out, make_request(settings, options), settings.overwrite)
    if progress is None:
        meta = read_meta(out)
        print(f"{out} already holds just this, finished")
    else:
        meta = write_sources(progress, settings, options, name)
    print(f"{out}: ", end="")
    print_summary(meta, out)


def make_request(settings, options):
    """The settings that determine the shards. Downloaded files are not listed: a finished folder needs no network."""
    found = [get_source(name) for name in settings.sources]
    local = [path for source in found if source.local for path in source.find(options)["all"]]
    return {
        "source": " ".join(settings.sources),
        "tokenizer": settings.tokenizer,
        "format": settings.format,
        "val": settings.val,
        "files": fingerprint(local),
    }


def write_sources(progress, settings, options, name):
    """Find, split and tokenize the sources; returns the content of `meta.json`."""
    get_tokenizer_once(settings.tokenizer)  # report a missing vocabulary before reading the text
    found = {source: get_source(source).find(options) for source in settings.sources}
    paths = [path for splits in found.values() for split in splits.values() for path in split]
    write = get_source(settings.sources[0]).write.get(settings.tokenizer)
    if write is not None:
        return write(progress, paths)
    workers = settings.num_proc if sum(map(os.path.getsize, paths)) > SINGLE_PROCESS_BYTES else 0
    parts = [split_source(source, splits, settings.val, workers) for source, splits in found.items()]
    return write_shards(progress, stream_items(parts, progress.position), workers, name)


# ---- the validation split ----


def split_source(source, files, val, workers):
    """Split → function that yields its (piece, fraction of the source).

    `files`: paths by split, or {"all": paths}, whose characters are counted to cut off the last `val` of them.
    """
    total = sum(os.path.getsize(path) for paths in files.values() for path in paths)
    if "all" not in files:
        return {split: functools.partial(cut_files, paths, total) for split, paths in files.items()}
    pieces = functools.partial(cut_files, files["all"], total)
    items = (Item([], None, share, piece) for piece, share in pieces())
    counts = []
    with tqdm(unit="char", unit_scale=True, desc=f"counting {source}", leave=False) as bar:
        for _, characters in map_in_order(count_characters, items, workers):
            counts.append(characters)
            bar.update(characters)
    cut = int(sum(counts) * (1 - val))
    return {split: functools.partial(split_pieces, split, pieces, counts, cut) for split in ("val", "train")}


def split_pieces(split, pieces, counts, cut):
    """Yield (piece, fraction) before ("train") or after ("val") character `cut`, cutting the piece that spans it.

    `counts` are the characters of each piece that `pieces()` yields.
    """
    stop = 0
    for (piece, share), characters in zip(pieces(), counts, strict=True):
        start, stop = stop, stop + characters
        if start <= cut < stop:
            head, tail = cut_texts(piece.texts(), cut - start)
            yield LoadedTexts(head, piece.continues) if split == "train" else LoadedTexts(tail), share
        elif (start >= cut) == (split == "val"):
            yield piece, share


def cut_texts(texts, cut):
    """The texts before and after character `cut` of all texts joined; a text that spans it appears in both."""
    head, tail = [], []
    for text in texts:
        if cut > 0:
            head.append(text[:cut])
        if cut < len(text):
            tail.append(text[cut:])
        cut = max(cut - len(text), 0)
    return head, tail


def stream_items(parts, position):
    """Yield the pieces of all sources as items, validation first, starting at `position` (None: all)."""
    number = 0
    for split in ("val", "train"):
        for part in parts:
            for piece, share in part[split]():
                if position is None or number >= position[0]:
                    yield Item([number], split, share / len(parts), piece)
                number += 1


if __name__ == "__main__":
    main()
