"""The named sources of text. Another source is one entry in `SOURCES`; everything else follows from the entry."""

import functools
import os
import re
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from system.download import download_from_any
from system.errors import UserError
from text import hub
from text.articles import join_articles
from text.documents import EXPECTED as EXPECTED_FILES
from text.documents import find_files, holds_documents
from text.encoding import tokenize_texts
from text.packed import unpacked_name
from text.progress import writing
from text.retry import Retry
from text.shard_writer import finish
from tokens.shards import write_shard
from tokens.tokenizer import get_tokenizer

HUB = "hf:"  # begins the name of a data set on the hub
FORM = f"{HUB}OWNER/NAME[:CONFIG][@SPLIT]"


@dataclass(frozen=True)
class FetchOptions:
    """How to fetch a source that is not on this machine."""

    folder: Path  # of the shards, for downloads that no cache keeps
    mirror: str | None  # a URL to try first
    retry: Retry
    splits: tuple[str, ...] = ("val", "train")  # which to fetch, where a source has its own


@dataclass(frozen=True)
class Source:
    """What `prepare.py` and `perplexity.py` know about a source of text."""

    description: str  # for --help
    find: Callable[[FetchOptions], dict[str, list[str]]]  # files by split of the options, or {"all": files}
    local: bool = False  # the files are on this machine; edited files are noticed
    regroup: Callable = iter  # applied to the (piece, share) of each split, where rows are not documents
    write: dict[str, Callable] = field(default_factory=dict)
    """Tokenizer → function(progress, paths) that writes the shards differently from `prepare.py`."""


def get_source(name):
    """A named source, a data set on the hub, or the files of a path, folder or pattern."""
    if name in SOURCES:
        return SOURCES[name]
    if name.startswith(HUB):
        return Source("a data set on the Hugging Face hub", functools.partial(find_on_hub, DataSet.parse(name)))
    return Source("files on this machine", lambda options: {"all": find_files(name)}, local=True)


def short_name(source):
    """What a source is called in the names of files and folders: a named source's name, or a file's stem."""
    stem = Path(unpacked_name(source)).resolve().stem if os.path.exists(source) else source
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


@dataclass(frozen=True)
class DataSet:
    """A data set on the hub, as `hf:OWNER/NAME[:CONFIG][@SPLIT]` names it."""

    repo: str
    config: str | None = None  # None: its default one
    split: str | None = None  # None: by our splits, see `choose_splits`

    @classmethod
    def parse(cls, name):
        """Raises `UserError` if `name` has another form."""
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?::([^:@]+))?(?:@([^:@]+))?", name)
        if match is None:
            raise UserError(f"{name}: expected {FORM}, like hf:Salesforce/wikitext:wikitext-2-raw-v1@test")
        return cls(*match.groups())

    def __str__(self):
        config = f":{self.config}" if self.config else ""
        return f"{HUB}{self.repo}{config}" + (f"@{self.split}" if self.split else "")


def find_on_hub(data_set, options):
    """The data files of a data set's splits, downloaded into the cache. Only those of `options.splits`."""
    hub.make_single_attempts()
    found = options.retry.call(hub.list_splits, data_set.repo, data_set.config)
    chosen = choose_splits(data_set, found, options.splits)
    for split in chosen.values():
        check_readable(data_set, [url for url, _ in found[split]])
    return {
        ours: [hub.locate_with_bar(url, options.retry) for url, _ in found[split]] for ours, split in chosen.items()
    }


def choose_splits(data_set, found, wanted):
    """Which splits of a data set to read: our name → the data set's, or {"all": the data set's}.

    All of the split that is named, or else each of `wanted`, or else the only split, or to train on `train`, whose end
    becomes the validation split. Raises `UserError` if none of these is there.
    """
    if data_set.split in found:
        return {"all": data_set.split}
    theirs = {"val": "validation", "train": "train", "test": "test"}
    if data_set.split is None:
        if all(theirs[ours] in found for ours in wanted):
            return {ours: theirs[ours] for ours in wanted}
        if len(found) == 1:
            return {"all": next(iter(found))}
        if "train" in wanted and "train" in found:
            return {"all": "train"}
    missing = data_set.split or theirs[wanted[0]]
    names = ", ".join(found)
    raise UserError(f"{data_set} has no split {missing!r}; it has {names}: name one with @SPLIT at the end")


def check_readable(data_set, urls):
    """Raise `UserError` unless all files of a data set have a format that is read."""
    for url in urls:
        if not holds_documents(url):
            raise UserError(f"{data_set} holds {url.rpartition('/')[2]}; expected files of {EXPECTED_FILES}")


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
        find=functools.partial(find_on_hub, DataSet("roneneldan/TinyStories")),
    ),
    "wikitext-103": Source(
        "WikiText-103, raw, from the hub, with its own validation and test splits; its lines joined into articles",
        find=functools.partial(find_on_hub, DataSet("Salesforce/wikitext", "wikitext-103-raw-v1")),
        regroup=join_articles,
    ),
}
EXPECTED = f"{', '.join(SOURCES)}, a data set on the hub ({FORM}), or files, folders or patterns of {EXPECTED_FILES}"
HELP = "; ".join(f"{name} ({source.description})" for name, source in SOURCES.items())
