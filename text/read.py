"""Read the documents of any source as text: files and named sources as `prepare.py` does, or a folder of shards."""

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.errors import UserError
from text.documents import FIELD, Described, cut_files, describe_files, is_package_mark, is_parquet
from text.retry import Retry
from text.sources import FetchOptions, get_source, short_name
from text.worker_pool import map_in_order
from tokens.shards import list_shards, open_data
from tokens.tokenizer import get_tokenizer

PATIENCE = 600.0  # seconds to retry when the network fails


@dataclass(frozen=True)
class Document:
    source: str  # the file or shard
    text: str  # not empty


def read_documents(names, split="val", limit=None, field=FIELD):
    """The `Document`s of all sources in order, at most `limit`. Raises `UserError` if there are none.

    `split`: which part of folders of shards, and of sources with splits of their own; other files are read whole.
    `field`: of .jsonl and .parquet files.
    """
    documents = itertools.chain.from_iterable(read_source(name, split, field) for name in names)
    found = list(itertools.islice(documents, limit))
    if not found:
        raise UserError(f"{' '.join(names)}: no text to score; expected at least one document that is not empty")
    return found


def read_source(name, split, field):
    """An iterator over the `Document`s of one source."""
    if list_shards(name, "train") or list_shards(name, "val"):
        return read_shards(name, split)
    retry, source = Retry(PATIENCE, "a file on this machine"), get_source(name)
    files = source.find(FetchOptions(Path("data", short_name(name)), None, retry, (split,)))
    return read_files(files["all"] if "all" in files else files[split], field, source.regroup)


def read_files(paths, field=FIELD, regroup=iter):
    """Yield the `Document`s of files. A document that the pieces of `cut_files` divide is joined again."""
    files = describe_files([path for path in paths if not is_package_mark(path)], field)
    workers = 1 if any(map(is_parquet, paths)) else 0  # pyarrow can abort the process on a damaged file
    items = (Described(piece) for piece, _ in regroup(cut_files(files, sum(file.size for file in files))))
    path, text = None, ""
    for item, texts in map_in_order(read_texts, items, workers):
        first, *others = texts or [""]
        if not item.piece.continues and text:
            yield Document(path, text)
            text = ""
        path, text = item.piece.path, text + first
        for other in others:
            yield Document(path, text)
            text = other
    if text:
        yield Document(path, text)


def read_texts(piece):
    """The texts of a piece, in a worker process or in this one."""
    return piece.texts()


def read_shards(folder, split):
    """Yield the `Document`s of a split of a folder of shards, decoded to text.

    A document that continues in the next shard counts as two; a character that the boundary cuts is dropped.
    """
    data = open_data(folder, "python prepare.py SOURCE")
    if split not in data.splits:
        raise UserError(f"{folder} is a folder of shards, which have no split {split!r}; expected val or train")
    tokenizer = get_tokenizer(data.tokenizer)
    shards = data.splits[split]
    for path, shard in zip(shards.paths, shards, strict=True):
        ends = np.append(np.flatnonzero(shard == tokenizer.eot), len(shard))
        for start, stop in itertools.pairwise(np.append(-1, ends).tolist()):
            text = tokenizer.decode_bytes(shard[start + 1 : stop].tolist()).decode(errors="ignore")
            if text:
                yield Document(path, text)
