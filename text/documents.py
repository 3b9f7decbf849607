"""Text files of several kinds, cut into pieces that any process can read by itself.

A piece is a small description (which file, from where to where): the process that hands out the work reads no text,
and workers read in parallel. A piece carries text only where a file cannot be read from the middle (a huge row group).
Cutting never changes the tokens, see `CUT`.
"""

import functools
import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from system.errors import UserError
from text.hub import RangeReader, is_remote

TEXT_SUFFIXES = (".txt", ".md", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".parquet")
COLUMN = "text"  # of .jsonl and .parquet files
PIECE_BYTES = 4 << 20  # large compared with sending a piece to a worker, small compared with memory

# Where a text may be cut without changing its GPT-2 tokens: after a character that is not a space, before a space or
# line feed. In GPT-2's pattern whitespace only begins a match, so no token spans such a place. The first part lists the
# bytes of some such characters: ASCII, CJK ideographs, and the ideographic full stop.
CUT = re.compile(rb"(?:[!-~]|[\xe4-\xe9][\x80-\xbf]{2}|\xe3\x80\x82)(?=[ \n])")
CUT_WINDOW = 1 << 16  # bytes searched at a time
CUT_LENGTH = 4  # bytes of the longest match of CUT, with the whitespace after it


class Piece(Protocol):
    """A part of a source. Small and picklable, so that it can be sent to a worker process."""

    continues: bool  # whether the first text continues the last document of the piece before

    def texts(self) -> list[str]:
        """Read the texts, one per document. Raises `UserError` if the file is damaged."""


@dataclass(frozen=True)
class Span:
    """Bytes of a plain text file (part of one document) or of a .jsonl file (whole lines)."""

    path: str
    start: int
    stop: int

    @property
    def continues(self):
        return self.start > 0 and not is_jsonl(self.path)

    def texts(self):
        with open(self.path, "rb") as f:
            f.seek(self.start)
            data = f.read(self.stop - self.start)
        if is_jsonl(self.path):
            return parse_jsonl(data, self.path, self.start)
        try:
            return [data.decode("utf-8")]
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, self.start + error.start) from error


@dataclass(frozen=True)
class Rows:
    """Rows of one row group of a .parquet file, on disk or on the Hugging Face hub (`hf://…`)."""

    path: str
    group: int
    start: int
    stop: int
    continues = False

    def texts(self):
        file = open_parquet(self.path)
        try:
            table = file.read_row_group(self.group, columns=[COLUMN])
        except OSError as error:  # pyarrow raises it for damaged pages
            raise UserError(f"{self.path}, row group {self.group}: {error}; download the file again") from error
        return [text for text in table[COLUMN].slice(self.start, self.stop - self.start).to_pylist() if text]


@dataclass(frozen=True)
class LoadedTexts:
    """Texts that are already in memory."""

    loaded: list[str]
    continues: bool = False

    def texts(self):
        return self.loaded


def find_files(pattern):
    """The text files of a path, folder or glob pattern, in a fixed order. Raises `UserError` if there are none."""
    if os.path.isfile(pattern):
        return [pattern]
    if os.path.isdir(pattern):
        paths = sorted(p for p in Path(pattern).rglob("*") if p.suffix in SUFFIXES and p.is_file())
        found = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(pattern).parts)]
        problem = f"folder {pattern} holds no file of"
    else:
        found = [p for p in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(p)]
        problem = f"{pattern}: no such file or folder; expected one, or a pattern that matches files, of"
    if not found:
        raise UserError(f"{problem} {', '.join(SUFFIXES)}")
    return [str(path) for path in found]


def fingerprint(paths):
    """A checksum of the paths, sizes and modification times of files, which changes when a file is edited."""
    stats = [(path, os.stat(path)) for path in paths]
    facts = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def cut_files(paths, total):
    """Yield (piece, fraction of the source) of files; `total` is the bytes of the whole source."""
    for path in paths:
        size = os.path.getsize(path)
        if size == 0 and os.path.basename(path) == "__init__.py":
            continue  # marks a package and is usually empty; any other empty file is an error
        for piece, share in cut_file(path):
            yield piece, share * size / total


def cut_file(path, start=0.0, stop=1.0):
    """Yield (piece, its fraction of the file) for the part of a file from `start` to `stop`, both 0 … 1.

    Adjacent parts neither share nor lose a document: the part that stops at 0.3 ends where the part that starts at 0.3
    begins.
    """
    if is_parquet(path):
        yield from cut_parquet(path, start, stop)
        return
    size = os.path.getsize(path)
    if size == 0:
        raise UserError(f"{path} is empty; leave it out")
    position, end = (next_cut(path, round(part * size), size) for part in (start, stop))
    while position < end:
        after = min(next_cut(path, position + PIECE_BYTES, size), end)
        yield Span(path, position, after), (after - position) / size
        position = after


def next_cut(path, position, size):
    """The first byte offset at or after `position` where the file, of `size` bytes, may be cut."""
    if position <= 0 or position >= size:
        return min(max(position, 0), size)
    with open(path, "rb") as f:
        if is_jsonl(path):
            f.seek(position - 1)
            f.readline()
            return f.tell()
        while position < size:
            f.seek(position)
            found = CUT.search(f.read(CUT_WINDOW))
            if found:
                return position + found.end()
            position += CUT_WINDOW - CUT_LENGTH  # overlap, for a match that spans two windows
    return size


def cut_parquet(path, start, stop):
    """Yield (piece, fraction) of a .parquet file: a row group a piece, or batches of a row group that is large.

    Workers read row groups of ordinary size; large ones on disk are read here, batch by batch.
    """
    metadata = open_parquet(path).metadata
    total = metadata.num_rows
    first, last = round(start * total), round(stop * total)
    before = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        a, b = max(first - before, 0), min(last - before, rows)
        before += rows
        if a >= b:
            continue
        if text_bytes(metadata, group) <= 4 * PIECE_BYTES or is_remote(path):
            yield Rows(path, group, a, b), (b - a) / total
        else:
            yield from cut_row_group(path, group, a, b)


def cut_row_group(path, group, first, last):
    """Read rows `first` … `last` - 1 of a row group in batches; yield (piece, fraction of the file)."""
    file = open_parquet(path)
    rows = file.metadata.row_group(group).num_rows
    batch_rows = max(1, rows * PIECE_BYTES // text_bytes(file.metadata, group))
    position = 0
    for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[COLUMN]):
        a, b = max(first - position, 0), min(last - position, len(batch))
        position += len(batch)
        if a < b:
            texts = [text for text in batch.column(0).slice(a, b - a).to_pylist() if text]
            yield LoadedTexts(texts), (b - a) / file.metadata.num_rows


def text_bytes(metadata, group):
    """Uncompressed size of the text column in a row group."""
    columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == COLUMN)


@functools.lru_cache(maxsize=2)  # read the file's footer once, not once per row group
def open_parquet(path):
    """Open a .parquet file with a text column, on disk or on the hub. Raises `UserError` for any other file."""
    import pyarrow
    import pyarrow.parquet

    try:
        if is_remote(path):
            file = pyarrow.parquet.ParquetFile(RangeReader(path), pre_buffer=True)
        else:
            file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not a whole parquet file ({error}); download it again") from error
    if COLUMN not in file.schema_arrow.names:
        raise UserError(f"{path} has no column {COLUMN!r}; it has {', '.join(file.schema_arrow.names)}")
    return file


def parse_jsonl(data, path, start):
    """The texts of whole lines of JSON. `path` and `start`, the offset of `data` in it, are for error messages."""
    texts = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[COLUMN]
            if not isinstance(text, str):
                raise TypeError
        except UnicodeDecodeError as error:
            raise not_utf8(path, start + error.start) from error
        except (ValueError, KeyError, TypeError) as error:
            where = f"line {number} after byte {start:,}" if start else f"line {number}"
            raise UserError(f'{path}, {where}: expected JSON like {{"{COLUMN}": "…"}}, found {line[:40]!r}') from error
        if text:
            texts.append(text)
    return texts


def not_utf8(path, position):
    return UserError(f"{path} is not UTF-8 text (byte {position:,}); convert it, or leave it out")


def is_jsonl(path):
    return path.endswith(".jsonl")


def is_parquet(path):
    return path.endswith(".parquet")
