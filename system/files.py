"""Write files atomically."""

import errno
import os
from pathlib import Path

from system.errors import UserError

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # `OSError.errno` of a full disk, quota or file system


def check_writable(out, overwrite):
    """Raise `UserError` if `--out` names a file that exists, unless `overwrite`, or a folder that doesn't."""
    if os.path.exists(out) and not overwrite:
        raise UserError(f"--out {out} already exists: pass --overwrite, or another name")
    if not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise UserError(f"--out {out}: its folder does not exist")


class AtomicFile:
    """A context that writes a file which appears under its name only once it is complete.

        with AtomicFile(path) as f:
            f.write(b"...")

    The data goes to a temporary file, which is flushed to disk and renamed to `path`; then the folder is flushed. On an
    exception the temporary file is deleted, and an earlier file at `path` is unchanged. A process that is killed while
    writing leaves `.NAME.tmp`, which nothing reads and the next attempt overwrites.
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
    """Flush a folder to disk, so that a rename in it survives a power failure. Does nothing on Windows."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
