"""Write files atomically, and give them a second name."""

import contextlib
import errno
import os
import re
import shutil
import stat
from pathlib import Path

from system.boundary import kind_of
from system.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, which never deletes a file that a process writes
    fcntl = None


class AtomicFile:
    """A context that writes a file which appears under its name only once it is complete.

        with AtomicFile(path) as f:
            f.write(b"...")

    The data goes to a temporary file, which is flushed to disk and renamed to `path`; then the folder is flushed. On an
    exception the temporary file is deleted, and an earlier file at `path` is unchanged. A link stays a link: its target
    is written. Raises `OSError`, also if `path` is a device or a pipe.

    The temporary file, `.NAME.XXXXXXXX.tmp`, has a name of its own in each process and is locked while it is written. A
    process that is killed leaves it; nothing reads it, and the next attempt to write `path` deletes it.
    """

    def __init__(self, path):
        self.path = Path(os.path.realpath(path))
        self.temporary = temporary_name(self.path)

    def __enter__(self):
        check_replaceable(self.path)
        delete_leftovers(self.path)
        self.file = open(self.temporary, "x+b")
        with contextlib.suppress(OSError):  # some network file systems have no locks; they keep leftovers
            lock(self.file)
        return self.file

    def __exit__(self, kind, value, traceback):
        try:
            if kind is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.temporary, self.path)
                flush_folder(self.path.parent)
        finally:
            with contextlib.suppress(OSError):  # a full disk, already reported by `write` or `flush`
                self.file.close()
            self.temporary.unlink(missing_ok=True)


def temporary_name(path):
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def link_or_copy(source, path):
    """Let `path` hold the content of the file `source`, atomically: as its second name, else as a copy.

    A second name (a hard link) takes no space, and the content stays when the first is deleted or replaced. It needs
    both on one file system that has hard links. Raises `OSError`; an earlier file at `path` is then unchanged.
    """
    try:
        link(source, path)
    except OSError:
        with open(source, "rb") as original, AtomicFile(path) as f:
            shutil.copyfileobj(original, f)


def link(source, path):
    path = Path(os.path.realpath(path))
    check_replaceable(path)
    delete_leftovers(path)
    temporary = temporary_name(path)
    try:
        os.link(os.path.realpath(source), temporary)
        os.replace(temporary, path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)  # `replace` leaves it where `path` was a name of `source` already


def check_replaceable(path):
    """Raise `OSError` if `path` exists and is no regular file."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"is {kind_of(mode)}, expected a file or a new name", str(path))


def delete_leftovers(path):
    """Delete the temporary files of `path` that killed processes left: those that are not locked."""
    temporary = re.compile(rf"\.{re.escape(path.name)}\.([0-9a-f]{{8}}\.)?tmp")  # earlier versions wrote .NAME.tmp
    for name in os.listdir(path.parent):
        leftover = path.with_name(name)
        if temporary.fullmatch(name) and leftover.is_file():
            with contextlib.suppress(OSError):
                with open(leftover, "rb") as f:
                    lock(f)  # raises while another process writes it, or without locks
                leftover.unlink()


def lock(file):
    """Lock an open file for as long as it is open. Raises `OSError` if another process has locked it."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def require_new_path(path, name="--out"):
    """Raise `UserError` unless `path` can be created: it is a name that is free, below a folder that can be written.

    Changes nothing, so that a command can call it before a long computation.
    """
    if Path(path).name in ("", ".."):
        raise UserError(f"{name} = {str(path)!r}: expected the path of a file or folder to write")
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; choose another {name}, or move it away")
    require_folder(Path(path).parent, path)


def require_writable_file(path, name="--out"):
    """Raise `UserError` unless a file at `path` can be created or replaced. Changes nothing."""
    if Path(path).name in ("", "..") or os.path.isdir(path):
        raise UserError(f"{name} = {str(path)!r}: expected the path of a file to write")
    path = Path(os.path.realpath(path))
    try:
        check_replaceable(path)
    except OSError as error:
        raise UserError(f"{path} {error.strerror}") from error
    require_folder(path.parent, path)


def check_writable(out, overwrite):
    """Raise `UserError` if `--out` names a file that exists, unless `overwrite`, or that cannot be written."""
    if os.path.exists(out) and not overwrite:
        raise UserError(f"--out {out} already exists: pass --overwrite, or another name")
    require_writable_file(out)


def require_folder(folder, path):
    """Raise `UserError` unless `folder`, where `path` is to be written, can be made and written into."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UserError(f"{path} cannot be written: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission to write into {folder}")


def flush_folder(folder):
    """Flush a folder to disk, so that a rename in it survives a power failure. Does nothing on Windows."""
    if os.name == "posix":
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
