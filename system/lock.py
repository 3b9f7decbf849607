"""One writer for each folder: a second process is refused in a line that names the first."""

import contextlib
import datetime
import os
import platform
import warnings
from pathlib import Path

from filelock import FileLock, Timeout

from system.errors import UserError

WAIT_S = 1.0  # a process that was just killed holds its lock until the kernel has ended it


@contextlib.contextmanager
def folder_lock(folder):
    """Hold the lock of `folder` for the time of the block. Makes the folder; removes it again if nothing was put in it.

    The lock belongs to the operating system, which releases it when the process ends, however it ends: a lock of a dead
    process does not exist. On a network file system it holds between machines if the server supports `flock` (NFSv4,
    Lustre with `-o flock`). If the file system has no locks, `filelock` creates a file that names host and process, and
    says so; it removes the file of a dead process of the same host, but not that of another host.

    Raises `UserError` if another process holds the lock, or if the folder cannot be made or written.
    """
    folder = Path(folder)
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]  # the deepest first
    lock, owner = FileLock(folder / ".lock"), folder / ".lock_owner"
    try:
        try:
            os.makedirs(folder, exist_ok=True)
            acquire(lock, owner, folder)
            owner.write_text(describe_process(), encoding="utf-8")
        except OSError as error:
            reason = "it is a file" if os.path.isfile(folder) else error.strerror
            raise UserError(f"{folder} cannot be written ({reason}): choose another folder") from error
        yield
    finally:
        if lock.is_locked:
            for path in (owner, Path(lock.lock_file)):  # deleted before the release: a waiting process starts over
                with contextlib.suppress(OSError):
                    path.unlink()
            lock.release()
        remove_empty(missing)


def acquire(lock, owner, folder):
    try:
        with warnings.catch_warnings(record=True) as caught:
            lock.acquire(timeout=WAIT_S, poll_interval=0.1)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {read_owner(owner)}: wait until it ends, stop it, or choose another folder"
        ) from None
    for warning in caught:
        print(f"warning: {folder}: {warning.message}", flush=True)


def read_owner(owner):
    try:
        return owner.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    except OSError:
        return "another process"


def describe_process():
    """One line that identifies this process: id, host, and when it took the lock."""
    now = datetime.datetime.now().astimezone().isoformat(" ", timespec="seconds")
    return f"process {os.getpid()} on {platform.node()}, since {now}\n"


def remove_empty(folders):
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()
