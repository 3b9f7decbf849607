"""Text of any kind → token shards to train on.

    python prepare.py SOURCE... [--tokenizer gpt2|byte] [--out DIR] [--val 0.1] [--format npy|bin]
    python prepare.py --inspect DIR

A SOURCE is a file, folder or pattern of .txt, .md, .py, .jsonl or .parquet files, or one of
    stdlib       source and documentation of Python's standard library, which every machine has
    shakespeare  Tiny Shakespeare; with the gpt2 tokenizer, exactly llm.c's files
    tinystories  TinyStories, from the Hugging Face hub, with its own validation split
Each plain text file, line or row is a document. Of all but the last two, the last tenth (`--val`) of each source's
characters is validation.
"""

import functools
import itertools
import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from configurator import configure
from system.errors import UserError, command
from text import hub
from text.documents import SUFFIXES, Given, cut_file, find_files, fingerprint
from text.encoding import Item, count_characters, make_shards, tokenizer_here
from text.shakespeare import fetch_shakespeare, write_shakespeare
from text.shard_writer import open_progress, print_summary
from text.workers import cores, in_order
from tokens.inspection import inspect
from tokens.shards import read_meta

TINYSTORIES = "roneneldan/TinyStories"
SMALL = 32 << 20  # bytes of text that one process tokenizes sooner than others start


@dataclass(frozen=True)
class Settings:
    """Turn text into token shards."""

    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """stdlib, shakespeare, tinystories, or files, folders or patterns of .txt, .md, .py, .jsonl, .parquet"""
    tokenizer: Literal["gpt2", "byte"] = "gpt2"
    """gpt2 (its vocabulary is downloaded once) or byte (nothing to download)"""
    out: str | None = None
    """folder for the shards; default: data/NAME after the source (data/NAME_byte for bytes)"""
    val: float = 0.1
    """part of each source's characters, at its end, that is validation"""
    format: Literal["npy", "bin"] = "npy"
    """npy (NumPy) or bin (llm.c)"""
    num_proc: int = cores()
    """worker processes, where there is enough text for more than one"""
    mirror: str | None = None
    """a URL to fetch shakespeare from first (HF_ENDPOINT names a mirror for tinystories)"""
    patience: float = 600.0
    """seconds to wait for a network that doesn't answer, before giving up"""
    overwrite: bool = False
    """replace the shards that --out already holds"""
    inspect: str | None = None
    """make nothing; print what this folder of shards holds and whether it is whole"""

    def check(self):
        if not self.sources and not self.inspect:
            kinds = f"stdlib, shakespeare, tinystories, or files, folders or patterns of {', '.join(SUFFIXES)}"
            raise UserError(f"prepare.py needs a source: {kinds}")
        if self.sources and self.inspect:
            raise UserError("--inspect DIR makes nothing: leave the sources out")
        if not 0 < self.val < 1:
            raise UserError(f"--val {self.val}: expected a part of the text, between 0 and 1, such as 0.1")
        if self.num_proc < 1:
            raise UserError(f"--num_proc {self.num_proc}: expected 1 or more")
        if self.llmc_shakespeare and len(self.sources) > 1:
            raise UserError("shakespeare with the gpt2 tokenizer makes llm.c's files; prepare it alone")

    @property
    def llmc_shakespeare(self):
        return "shakespeare" in self.sources and self.tokenizer == "gpt2"


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="sources")
    if settings.inspect:
        inspect(settings.inspect)
        return
    name = "+".join(source_name(source) for source in settings.sources)
    suffix = "" if settings.tokenizer == "gpt2" else f"_{settings.tokenizer}"
    out = Path(settings.out or Path("data", name + suffix))
    progress = open_progress(out, make_request(settings), settings.overwrite)
    if progress is None:
        meta = read_meta(out)
        print(f"{out} already holds just this, finished")
    elif settings.llmc_shakespeare:
        meta = write_shakespeare(progress, fetch_shakespeare(out, settings.mirror))
    else:
        tokenizer_here(settings.tokenizer)  # a missing vocabulary is best told before the text is read
        files = {source: find_source(source, out, settings) for source in settings.sources}
        paths = itertools.chain.from_iterable(group for splits in files.values() for group in splits.values())
        workers = settings.num_proc if sum(map(os.path.getsize, paths)) > SMALL else 0
        parts = [split_source(source, splits, settings.val, workers) for source, splits in files.items()]
        meta = make_shards(progress, stream(parts, progress.position), workers, name)
    print(f"{out}: ", end="")
    print_summary(meta, out)


def source_name(source):
    """What a source is called in names of files."""
    stem = Path(source).resolve().stem if os.path.exists(source) else source
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).strip("_.") or "text"


def make_request(settings):
    """What makes the shards what they are. Downloads are named, not listed: a finished folder needs no network."""
    local = [source for source in settings.sources if source not in ("shakespeare", "tinystories")]
    return {
        "source": " ".join(settings.sources),
        "tokenizer": settings.tokenizer,
        "format": settings.format,
        "val": settings.val,
        "files": fingerprint([path for source in local for path in local_files(source)]),
    }


def local_files(source):
    return stdlib_files(sysconfig.get_paths()["stdlib"]) if source == "stdlib" else find_files(source)


def find_source(source, out, settings):
    """The files of a source, fetched if need be: {"all": paths}, or by split where it has its own."""
    if source == "shakespeare":
        return {"all": [str(fetch_shakespeare(out, settings.mirror))]}
    if source != "tinystories":
        return {"all": local_files(source)}
    hub.announce_waits()
    patience, files = hub.Patience(settings.patience, "another source, such as stdlib"), {}
    for ours, theirs in (("val", "validation"), ("train", "train")):
        urls = patience.call(hub.list_data_files, TINYSTORIES, None, theirs)
        files[ours] = [hub.fetch(url, patience) for url, _ in urls]
    return files


def stdlib_files(folder):
    """Source and documentation text of Python's standard library, in a fixed order.

    Left out: tests, installed packages, what was generated for this one machine, and files that hold nothing.
    """
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in left_out and not name.startswith("config-")]
        paths = [Path(place, name) for name in names if not name.startswith("_sysconfig")]
        found += [path for path in paths if path.suffix in (".py", ".txt", ".rst", ".md") and holds_text(path)]
    if not found:
        raise UserError(f"stdlib: {folder} holds no .py files (a Python in one archive?); name a folder with text")
    return [str(path) for path in sorted(found, key=lambda path: path.relative_to(folder).as_posix())]


def holds_text(path):
    try:
        return bool(path.read_bytes().decode())
    except UnicodeDecodeError:
        return False


def split_source(source, files, val, workers):
    """Split → a function that yields its (piece, share). Where a source has no split of its own, count and cut it."""
    total = sum(os.path.getsize(path) for paths in files.values() for path in paths)
    if "all" not in files:
        return {split: functools.partial(cut_files, paths, total) for split, paths in files.items()}
    pieces = functools.partial(cut_files, files["all"], total)
    items = (Item([], None, share, piece) for piece, share in pieces())
    counts = []
    with tqdm(unit="char", unit_scale=True, desc=f"counting {source}", leave=False) as bar:
        for _, characters in in_order(count_characters, items, workers):
            counts.append(characters)
            bar.update(characters)
    cut = int(sum(counts) * (1 - val))
    return {split: functools.partial(part_of, split, pieces, counts, cut) for split in ("val", "train")}


def cut_files(paths, total):
    """Yield (piece, share) of files; `total` is the bytes of the whole source."""
    for path in paths:
        size = os.path.getsize(path)
        if size == 0 and os.path.basename(path) == "__init__.py":
            continue  # the mark of a package, empty by custom
        for piece, share in cut_file(path):
            yield piece, share * size / total


def part_of(split, pieces, counts, cut):
    """Yield (piece, share) of one side of character `cut`; the piece that straddles it is cut there."""
    seen = 0
    for (piece, share), characters in zip(pieces(), counts, strict=True):
        before, seen = seen, seen + characters
        if before <= cut < seen:
            head, tail = cut_texts(piece.texts(), cut - before)
            yield Given(head, piece.continues) if split == "train" else Given(tail), share
        elif (before >= cut) == (split == "val"):
            yield piece, share


def cut_texts(texts, cut):
    """Texts before and after character `cut` of all of them."""
    head, tail = [], []
    for text in texts:
        head += [text[:cut]] if cut > 0 else []
        tail += [text[cut:]] if cut < len(text) else []
        cut = max(cut - len(text), 0)
    return head, tail


def stream(parts, position):
    """All pieces, validation first, as items; from `position` on."""
    number = 0
    for split in ("val", "train"):
        for part in parts:
            for piece, share in part[split]():
                if position is None or number >= position[0]:
                    yield Item([number], split, share / len(parts), piece)
                number += 1


if __name__ == "__main__":
    main()
