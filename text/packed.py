"""Text files that are compressed with gzip, bzip2 or xz, read as a stream: memory does not grow with the unpacked size.

The largest piece bounds the memory, not the file: an archive may hold a whole corpus, and a small one that unpacks to
terabytes ends at the first piece that is too long.
"""

import bz2
import contextlib
import functools
import gzip
import lzma
import os

from system.boundary import foreign, require_regular_file
from system.errors import UserError

OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
UNREAD = ".zst"
SUFFIXES = (*OPEN, UNREAD)
BLOCK_BYTES = 1 << 20  # unpacked at a time
LARGEST_PIECE = 256 << 20  # unpacked bytes between two places where the text may be cut
XZ_MEMORY = 256 << 20  # bytes that unpacking an .xz file may need; `xz -9` needs 65 MiB


def is_packed(path):
    return path.endswith(SUFFIXES)


def unpacked_name(path):
    """The path without the suffix of its compression."""
    return os.path.splitext(path)[0] if is_packed(path) else path


def unpacking(path):
    return foreign(path, f"a whole {os.path.splitext(path)[1]} file", "compress or download it again")


@contextlib.contextmanager
def open_packed(path):
    """Open a compressed file to read its unpacked bytes. Raises `UserError` if it is damaged."""
    require_regular_file(path, "a file of text")
    if path.endswith(UNREAD):
        raise UserError(f"{path}: {UNREAD} is not read, only {', '.join(OPEN)}; unpack it first (unzstd)")
    with unpacking(path):
        if path.endswith(".xz"):
            check_xz_memory(path)
        with OPEN[os.path.splitext(path)[1]](path, "rb") as f:
            yield f


def check_xz_memory(path):
    """Raise `LZMAError` if the first block of an .xz file needs more than `XZ_MEMORY`: `lzma.open` has no limit."""
    with open(path, "rb") as f:
        lzma.LZMADecompressor(memlimit=XZ_MEMORY).decompress(f.read(1 << 16), max_length=1)


def find_cuts(path, pattern, piece_bytes):
    """Where the unpacked text may be cut, in order: 0, then ends of matches of `pattern`, then its length in bytes.

    They are at least `piece_bytes` apart. Reads all of the file once, so that a damaged one is found before its text is
    used.
    """
    cuts, length = [0], 0
    with open_packed(path) as f:
        while block := f.read(BLOCK_BYTES):
            while match := pattern.search(block, max(0, cuts[-1] + piece_bytes - length)):
                cuts.append(length + match.end())
            length += len(block)
            if length - cuts[-1] > LARGEST_PIECE:
                raise UserError(f"{path} unpacks to {LARGEST_PIECE:,} bytes without an end of line or word")
    return (*cuts, length) if length > cuts[-1] else tuple(cuts)


def read_packed(path, start, stop):
    """Unpacked bytes `start` to `stop`. Reading from front to back unpacks the file once."""
    stat = os.stat(path)
    with unpacking(path):
        f = opened_once(path, stat.st_size, stat.st_mtime_ns)
        f.seek(start)
        return f.read(stop - start)


@functools.lru_cache(maxsize=1)  # one piece follows another: their file stays open at the end of the last one
def opened_once(path, size, mtime):
    """An open file. `size` and `mtime` tell its versions apart."""
    return OPEN[os.path.splitext(path)[1]](path, "rb")
