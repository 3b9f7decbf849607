"""Tokenize text of any kind into shards to train on.

    python prepare.py SOURCE... [--tokenizer gpt2|byte] [--out DIR] [--val 0.1] [--format npy|bin]
    python prepare.py CHATS.jsonl --chat [--T 1024] [--out DIR]
    python prepare.py --inspect DIR

A SOURCE is a file, folder or pattern of .txt, .md, .py, .jsonl (also with .gz, .bz2 or .xz) or .parquet files, a data
set on the Hugging Face hub (hf:OWNER/NAME[:CONFIG][@SPLIT]), or a named source: `--help` lists them, and
text/sources.py defines them. Each plain text file, line or row is a document. If a source has no validation split of
its own, the last tenth (`--val`) of its characters becomes one. With `--chat`, each line of a .jsonl file is a
conversation: see text/chat.py.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from configurator import Range, configure
from system.errors import UserError, command
from system.lock import folder_lock
from text.chat import write_chats
from text.documents import FIELD, HalfPiece, cut_files, describe_files, fingerprint, is_package_mark, is_parquet
from text.encoding import count_characters, get_tokenizer_once
from text.progress import open_progress, read_finished
from text.retry import Retry
from text.shard_writer import Item, print_summary, write_shards
from text.sources import EXPECTED, HELP, FetchOptions, get_source, short_name
from text.worker_pool import MOST_PROCESSES, cpu_count, map_in_order
from tokens.inspection import inspect
from tokens.tokenizer import TokenizerName

CHAT_WINDOW = 1024  # GPT-2's context
SINGLE_PROCESS_BYTES = 32 << 20  # one process tokenizes less text than this sooner than workers start


@dataclass(frozen=True)
class Settings:
    """Tokenize text into shards."""

    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"{EXPECTED}. {HELP}")] = ()
    tokenizer: TokenizerName = "gpt2"
    """gpt2 (its vocabulary is downloaded once) or byte (nothing to download)"""
    out: str | None = None
    """folder for the shards; default: data/NAME after the source (data/NAME_byte for bytes)"""
    val: Annotated[float, Range(0, 0.99, excluded=0)] = 0.1
    """fraction of each source's characters, at its end, that is validation"""
    text_field: str = FIELD
    """field of .jsonl files, and column of .parquet files, that holds the text"""
    chat: bool = False
    """the sources are .jsonl files with a conversation on each line, to fine-tune on the assistant's answers:
    {"messages": [{"role": "system|user|assistant", "content": TEXT}, ...]} or {"prompt": TEXT, "completion": TEXT}"""
    T: Annotated[int | None, Range(16, 2**20)] = None
    """--chat: tokens in a training sequence, into which whole conversations are packed; by default 1024"""
    format: Literal["npy", "bin"] = "npy"
    """npy (NumPy) or bin (llm.c)"""
    num_proc: Annotated[int, Range(1, MOST_PROCESSES)] = cpu_count()
    """worker processes, if there is enough text for more than one"""
    mirror: str | None = None
    """a URL to download shakespeare from first (HF_ENDPOINT sets a mirror for tinystories)"""
    patience: Annotated[float, Range(0)] = 600.0
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
        if self.T is not None and not self.chat:
            raise UserError("--T is for --chat; other text is cut into sequences when a run reads it")
        for name in self.sources:
            if self.sources.count(name) > 1:
                raise UserError(f"{name} is given twice: name each source once")
            if self.tokenizer in get_source(name).write and len(self.sources) > 1:
                raise UserError(f"{name} with the {self.tokenizer} tokenizer has its own shards; prepare it alone")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="sources")
    if settings.inspect:
        inspect(settings.inspect)
        return
    name = "+".join(map(short_name, settings.sources))
    suffix = ("_chat" if settings.chat else "") + ("" if settings.tokenizer == "gpt2" else f"_{settings.tokenizer}")
    out = Path("data", name + suffix) if settings.out is None else Path(settings.out)
    options = FetchOptions(out, settings.mirror, Retry(settings.patience, "another source, such as stdlib"))
    request = make_request(settings, options)
    meta = None if settings.overwrite else read_finished(out, request)
    if meta is None:
        with folder_lock(out):
            progress = open_progress(out, request, settings.overwrite)
            meta = write_sources(progress, settings, options, name) if progress else read_finished(out, request)
    else:
        print(f"{out} already holds just this, finished")
    print(f"{out}: ", end="")
    print_summary(meta, out)


def make_request(settings, options):
    """The settings that determine the shards. Downloaded files are not listed: a finished folder needs no network."""
    sources = {name: get_source(name) for name in settings.sources}
    local = {name: source.find(options)["all"] for name, source in sources.items() if source.local}
    check_no_file_twice(local)
    request = {
        "source": " ".join(settings.sources),
        "tokenizer": settings.tokenizer,
        "format": settings.format,
        "val": settings.val,
        "files": fingerprint([path for paths in local.values() for path in paths]),
    }
    if settings.text_field != FIELD:
        request["text_field"] = settings.text_field
    if settings.chat:
        request["chat"] = chat_window(settings)
    return request


def chat_window(settings):
    """Tokens in a window of conversations."""
    return CHAT_WINDOW if settings.T is None else settings.T


def check_no_file_twice(files):
    """Raise `UserError` if two sources hold the same file. `files`: source → paths."""
    owners = {}
    for source, paths in files.items():
        for path in paths:
            owner = owners.setdefault(os.path.realpath(path), source)
            if owner != source:
                raise UserError(f"{path} is in two sources, {owner} and {source}: its text would be taken twice")


def write_sources(progress, settings, options, name):
    """Find, split and tokenize the sources; returns the content of `meta.json`."""
    get_tokenizer_once(settings.tokenizer)  # report a missing vocabulary before reading the text
    found = {source: get_source(source).find(options) for source in settings.sources}
    paths = [path for splits in found.values() for split in splits.values() for path in split]
    if settings.chat:
        return write_chats(progress, paths, chat_window(settings), settings.val)
    write = get_source(settings.sources[0]).write.get(settings.tokenizer)
    if write is not None:
        return write(progress, paths)
    workers = choose_workers(paths, settings.num_proc)
    parts = [split_source(source, splits, settings, workers) for source, splits in found.items()]
    return write_shards(progress, stream_items(parts, progress.position), workers, name)


def choose_workers(paths, num_proc):
    """The number of worker processes; 0: tokenize in this process, which never reads .parquet files itself."""
    if sum(map(os.path.getsize, paths)) > SINGLE_PROCESS_BYTES:
        return num_proc
    return 1 if any(map(is_parquet, paths)) else 0


# ---- the validation split ----


def split_source(source, splits, settings, workers):
    """Split → function that yields its (piece, fraction of the source).

    `splits`: paths by split, or {"all": paths}, whose characters are counted to cut off the last `val` of them.
    """
    files = {
        split: describe_files([path for path in paths if not is_package_mark(path)], settings.text_field)
        for split, paths in splits.items()
    }
    total = sum(file.size for found in files.values() for file in found)

    def cut(found):
        return get_source(source).regroup(cut_files(found, total))

    if "all" not in files:
        return {split: functools.partial(cut, found) for split, found in files.items()}
    pieces = functools.partial(cut, files["all"])
    items = (Item([], None, share, piece) for piece, share in pieces())
    counts = []
    with tqdm(unit="char", unit_scale=True, desc=f"counting {source}", leave=False, disable=None) as bar:
        for _, characters in map_in_order(count_characters, items, workers):
            counts.append(characters)
            bar.update(characters)
    cut = int(sum(counts) * (1 - settings.val))
    return {split: functools.partial(split_pieces, split, pieces, counts, cut) for split in ("val", "train")}


def split_pieces(split, pieces, counts, cut):
    """Yield (piece, fraction) before ("train") or after ("val") character `cut`, cutting the piece that spans it.

    `counts` are the characters of each piece that `pieces()` yields.
    """
    stop = 0
    for (piece, share), characters in zip(pieces(), counts, strict=True):
        start, stop = stop, stop + characters
        if start <= cut < stop:
            yield HalfPiece(piece, cut - start, after=split == "val"), share
        elif (start >= cut) == (split == "val"):
            yield piece, share


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
