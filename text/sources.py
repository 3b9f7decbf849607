"""The named sources of text. Another source is one entry in `SOURCES`; everything else follows from the entry."""

import functools
import os
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from system.download import download_from_any
from system.errors import UserError
from text import hub
from text.documents import SUFFIXES, find_files
from text.encoding import tokenize_texts
from text.progress import writing
from text.retry import Retry
from text.shard_writer import finish
from tokens.shards import write_shard
from tokens.tokenizer import get_tokenizer


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch a source that is not on this machine."""

    folder: Path  # of the shards, for downloads that no cache keeps
    mirror: str | None  # a URL to try first
    retry: Retry


@dataclass(frozen=True)
class Source:
    """What `prepare.py` knows about a source of text."""

    description: str  # for --help
    find: Callable[[FetchOptions], dict[str, list[str]]]  # files by split, "train" and "val", or {"all": files}
    local: bool = False  # the files are on this machine; edited files are noticed
    write: dict[str, Callable] = field(default_factory=dict)
    """Tokenizer → function(progress, paths) that writes the shards differently from `prepare.py`."""


def get_source(name):
    """A named source, or the files of a path, folder or pattern."""
    if name in SOURCES:
        return SOURCES[name]
    return Source("files on this machine", lambda options: {"all": find_files(name)}, local=True)


def short_name(source):
    """What a source is called in the names of files and folders: a named source's name, or a file's stem."""
    stem = Path(source).resolve().stem if os.path.exists(source) else source
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stem).strip("_.") or "text"


# ---- Python's standard library ----


def stdlib_files():
    """Source and documentation files of Python's standard library, in a fixed order.

    Without tests, installed packages, files generated for this one machine, and empty files.
    """
    folder = sysconfig.get_paths()["stdlib"]
    skipped = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib-dynload"}
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped and not name.startswith("config-")]
        paths = [Path(place, name) for name in names if not name.startswith("_sysconfig")]
        found += [path for path in paths if path.suffix in (".py", ".txt", ".rst", ".md") and holds_text(path)]
    if not found:
        raise UserError(f"stdlib: {folder} holds no .py files (a Python in one archive?); name a folder with text")
    return [str(path) for path in sorted(found, key=lambda path: path.relative_to(folder).as_posix())]


def holds_text(path):
    """Whether a file is UTF-8 and not empty."""
    try:
        return bool(path.read_bytes().decode())
    except UnicodeDecodeError:
        return False


# ---- sources on the network ----


def find_download(file, urls, sha256, options):
    """A text file with a known checksum, kept beside the shards."""
    path = options.folder / file
    instead = "set https_proxy, or give --mirror URL"
    download_from_any((options.mirror, *urls) if options.mirror else urls, path, sha256, instead)
    return {"all": [str(path)]}


def find_on_hub(repo, splits, options):
    """The data files of a data set's splits, downloaded into the cache. `splits`: our name → the data set's name."""
    hub.make_single_attempts()
    files = {}
    for split, their_split in splits.items():
        urls = options.retry.call(hub.list_data_files, repo, None, their_split)
        files[split] = [hub.locate_with_bar(url, options.retry) for url, _ in urls]
    return files


def write_llmc_shakespeare(progress, paths):
    """Write `tiny_shakespeare_val` and `_train` exactly as llm.c does; returns the content of `meta.json`.

    Documents are the parts between blank lines (each but the last keeps its blank line), and the first 32768 tokens are
    the validation split. Source: llm.c, dev/data/tinyshakespeare.py.
    """
    start = time.monotonic()
    *sections, last = Path(paths[0]).read_bytes().decode().split("\n\n")
    tokens = tokenize_texts([section + "\n\n" for section in sections] + [last], get_tokenizer("gpt2"))
    progress.begin()
    for split, ids in (("val", tokens.ids[:32_768]), ("train", tokens.ids[32_768:])):
        path = progress.out / f"tiny_shakespeare_{split}.{progress.request['format']}"
        with writing(path):
            progress.shards.append(write_shard(path, ids))
    progress.documents, progress.bytes, progress.seconds = tokens.documents, tokens.bytes, time.monotonic() - start
    return finish(progress)


# ---- the table ----

SOURCES = {
    "stdlib": Source(
        "source and documentation of Python's standard library, which every machine has",
        find=lambda options: {"all": stdlib_files()},
        local=True,
    ),
    "shakespeare": Source(
        "Tiny Shakespeare; with the gpt2 tokenizer, exactly llm.c's files",
        find=functools.partial(
            find_download,
            "tiny_shakespeare.txt",
            (
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
                "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
            ),
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
        write={"gpt2": write_llmc_shakespeare},
    ),
    "tinystories": Source(
        "TinyStories, from the Hugging Face hub, with its own validation split",
        find=functools.partial(find_on_hub, "roneneldan/TinyStories", {"val": "validation", "train": "train"}),
    ),
}
EXPECTED = f"{', '.join(SOURCES)}, or files, folders or patterns of {', '.join(SUFFIXES)}"
HELP = "; ".join(f"{name} ({source.description})" for name, source in SOURCES.items())
