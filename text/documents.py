"""Text files of several kinds, cut into pieces that any process can read by itself.

A piece is a small description (which file, from where to where): the process that hands out the work reads no text,
and workers read in parallel. Cutting never changes the tokens, see `CUT`.
"""

import bisect
import functools
import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from system.boundary import foreign, require_regular_file
from system.errors import UserError
from text import packed
from text.hub import is_remote
from text.packed import is_packed, unpacked_name
from text.parquet import Rows, read_groups
from text.worker_pool import map_in_order

TEXT_SUFFIXES = (".txt", ".md", ".py")
LINE_SUFFIXES = (*TEXT_SUFFIXES, ".jsonl")  # these may be compressed
SUFFIXES = (*LINE_SUFFIXES, ".parquet")
EXPECTED = f"{', '.join(SUFFIXES)} (all but .parquet also compressed: {', '.join(packed.OPEN)})"
FIELD = "text"  # the field of .jsonl files and the column of .parquet files that holds the text
PIECE_BYTES = 4 << 20  # large compared with sending a piece to a worker, small compared with memory

# Where a text may be cut without changing its GPT-2 tokens: after a character that is not a space, before a space or
# line feed. In GPT-2's pattern whitespace only begins a match, so no token spans such a place. The first part lists the
# bytes of some such characters: ASCII, CJK ideographs, and the ideographic full stop.
CUT = re.compile(rb"(?:[!-~]|[\xe4-\xe9][\x80-\xbf]{2}|\xe3\x80\x82)(?=[ \n])")
CUT_WINDOW = 1 << 16  # bytes searched at a time
CUT_LENGTH = 4  # bytes of the longest match of CUT, with the whitespace after it
LINE_END = re.compile(rb"\n")  # where .jsonl files may be cut


class Piece(Protocol):
    """A part of a source. Small and picklable, so that it can be sent to a worker process."""

    continues: bool  # whether the first text continues the last document of the piece before

    def texts(self) -> list[str]:
        """Read the texts, one per document. Raises `UserError` if the file is damaged."""

    def __str__(self) -> str:
        """The path of its file, for messages."""


@dataclass(frozen=True)
class TextFile:
    """A file to cut into pieces."""

    path: str
    size: int = 0  # bytes, of a compressed file the unpacked ones; 0 for a file on the hub
    field: str = FIELD  # of .jsonl and .parquet files
    cuts: tuple = ()  # of compressed files: the offsets at which they are cut
    groups: tuple = ()  # of .parquet files: (rows, bytes of text) of each row group


@dataclass(frozen=True)
class Span:
    """Bytes of a plain text file (part of one document) or of a .jsonl file (whole lines); unpacked, if compressed."""

    path: str
    start: int
    stop: int
    field: str = FIELD

    def __str__(self):
        return self.path

    @property
    def continues(self):
        return self.start > 0 and not is_jsonl(self.path)

    def texts(self):
        data = self.read()
        if is_jsonl(self.path):
            return parse_jsonl(data, self)
        try:
            return [data.decode("utf-8")]
        except UnicodeDecodeError as error:
            raise not_utf8(self.path, self.start + error.start) from error

    def read(self):
        if is_packed(self.path):
            return packed.read_packed(self.path, self.start, self.stop)
        with foreign(self.path, "a file of text"), open(self.path, "rb") as f:
            f.seek(self.start)
            return f.read(self.stop - self.start)


@dataclass(frozen=True)
class HalfPiece:
    """A piece up to character `cut` of all its texts joined, or from there on; a text that spans it is in both."""

    piece: Piece
    cut: int
    after: bool

    @property
    def continues(self):
        return self.piece.continues and not self.after

    def __str__(self):
        return str(self.piece)

    def texts(self):
        found, cut = [], self.cut
        for text in self.piece.texts():
            if self.after and cut < len(text):
                found.append(text[max(cut, 0) :])
            if not self.after and cut > 0:
                found.append(text[:cut])
            cut -= len(text)
        return found


def find_files(pattern):
    """The text files of a path, folder or glob pattern, in a fixed order. Raises `UserError` if there are none."""
    if os.path.exists(pattern) and not os.path.isdir(pattern):
        require_regular_file(pattern, "a file or folder of text")
        return [pattern]
    if os.path.isdir(pattern):
        paths = sorted(p for p in Path(pattern).rglob("*") if holds_documents(p.name) and p.is_file())
        found = [p for p in paths if not any(part.startswith(".") for part in p.relative_to(pattern).parts)]
        problem = f"folder {pattern} holds no file of"
    else:
        found = [p for p in sorted(glob.glob(pattern, recursive=True)) if os.path.isfile(p)]
        problem = f"{pattern}: no such file or folder; expected one, or a pattern that matches files, of"
    if not found:
        raise UserError(f"{problem} {EXPECTED}")
    return [str(path) for path in found]


def holds_documents(name):
    """Whether a file's name has one of the suffixes that are read; so has an archive that will be refused."""
    return name.endswith(SUFFIXES) or (is_packed(name) and unpacked_name(name).endswith(LINE_SUFFIXES))


def fingerprint(paths):
    """A checksum of the paths, sizes and modification times of files, which changes when a file is edited."""
    stats = [(path, os.stat(path)) for path in paths]
    facts = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def describe_files(paths, field=FIELD, should_retry=None):
    """The `TextFile` of each path. If there are .parquet files, a worker process reads their footers.

    `should_retry`: see `map_in_order`.
    """
    workers = 1 if any(map(is_parquet, paths)) else 0
    function, items = functools.partial(describe_file, field=field), map(Described, paths)
    return [file for _, file in map_in_order(function, items, workers, should_retry)]


class Described(NamedTuple):
    """An item of `map_in_order` that is a path."""

    piece: str


def describe_file(path, field=FIELD):
    """The `TextFile` of a path. pyarrow can abort the process on a damaged .parquet file, see `describe_files`."""
    if is_remote(path):
        return TextFile(path, 0, field, groups=read_groups(path, field))
    require_regular_file(path, "a file of text")
    size, groups, cuts = os.path.getsize(path), (), ()
    if is_parquet(path) and size > 0:
        groups = read_groups(path, field)
    elif is_packed(path):
        cuts = packed.find_cuts(path, LINE_END if is_jsonl(path) else CUT, PIECE_BYTES)
        size = cuts[-1]
    if size == 0:
        raise UserError(f"{path} is empty; leave it out")
    return TextFile(path, size, field, cuts, groups)


def cut_files(files, total):
    """Yield (piece, fraction of the source) of `TextFile`s; `total` is the bytes of the whole source."""
    for file in files:
        for piece, share in cut_file(file):
            yield piece, share * file.size / total


def is_package_mark(path):
    """Whether a file is an empty `__init__.py`, which marks a package; any other empty file is an error."""
    return os.path.basename(path) == "__init__.py" and os.path.getsize(path) == 0


def cut_file(file, start=0.0, stop=1.0):
    """Yield (piece, its fraction of the file) for the part of a `TextFile` from `start` to `stop`, both 0 … 1.

    Adjacent parts neither share nor lose a document: the part that stops at 0.3 ends where the part that starts at 0.3
    begins.
    """
    if is_parquet(file.path):
        yield from cut_parquet(file, start, stop)
        return
    path, size = file.path, file.size
    position, end = (next_cut(file, round(part * size)) for part in (start, stop))
    while position < end:
        after = min(next_cut(file, position + PIECE_BYTES), end)
        yield Span(path, position, after, file.field), (after - position) / size
        position = after


def next_cut(file, position):
    """The first byte offset at or after `position` where the file may be cut."""
    path, size = file.path, file.size
    if position <= 0 or position >= size:
        return min(max(position, 0), size)
    if file.cuts:
        return file.cuts[bisect.bisect_left(file.cuts, position)]
    with foreign(path, "a file of text"), open(path, "rb") as f:
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


def cut_parquet(file, start, stop):
    """Yield (piece, fraction) of a .parquet file: a row group a piece, or batches of a row group that is large."""
    total = sum(rows for rows, _ in file.groups)
    first, last = round(start * total), round(stop * total)
    before = 0
    for group, (rows, text_bytes) in enumerate(file.groups):
        a, b = max(first - before, 0), min(last - before, rows)
        before += rows
        if a >= b:
            continue
        if text_bytes <= 4 * PIECE_BYTES or is_remote(file.path):
            yield Rows(file.path, group, a, b, file.field), (b - a) / total
            continue
        batch = max(1, rows * PIECE_BYTES // text_bytes)
        for position in range(0, rows, batch):
            c, d = max(position, a), min(position + batch, b)
            if c < d:
                yield Rows(file.path, group, c, d, file.field, batch), (d - c) / total


def parse_jsonl(data, span):
    """The texts of `data`, the whole lines of JSON of a `Span`."""
    texts = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[span.field]
            if not isinstance(text, str):
                raise TypeError
        except UnicodeDecodeError as error:
            raise not_utf8(span.path, span.start + error.start) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            where = f"line {number} after byte {span.start:,}" if span.start else f"line {number}"
            expected = f'expected JSON like {{"{span.field}": "…"}}, found {line[:40]!r}'
            raise UserError(f"{span.path}, {where}: {expected}; see --text_field") from error
        if text:
            texts.append(text)
    return texts


def not_utf8(path, position):
    return UserError(f"{path} is not UTF-8 text (byte {position:,}); convert it, or leave it out")


def is_jsonl(path):
    return unpacked_name(path).endswith(".jsonl")


def is_parquet(path):
    return path.endswith(".parquet")
