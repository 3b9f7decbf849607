"""Files that are never half there."""

import errno
import os
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # `OSError.errno` of a disk, quota or file system that is full


class AtomicFile:
    """A file that appears under its name only when whole: temporary, flushed, renamed, its folder flushed.

    with AtomicFile(path) as f: f.write(...)    # on an exception nothing is left behind

    A process killed while writing leaves `.NAME.tmp`, which nothing reads and the next attempt overwrites.
    """

    def __init__(self, path):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.tmp")

    def __enter__(self):
        self.file = open(self.temporary, "w+b")
        return self.file

    def __exit__(self, kind, value, traceback):
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
            self.file.close()
            if kind is None:
                os.replace(self.temporary, self.path)
                flush_folder(self.path.parent)
        finally:
            self.temporary.unlink(missing_ok=True)


def flush_folder(folder):
    """Make a rename survive a power cut (POSIX; Windows has no such call and needs none)."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
