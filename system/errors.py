"""Errors that a user can fix end a command with one line and exit code 2; every other exception keeps its traceback."""

import errno
import functools
import os
import signal
import sys

from system.interrupt import exit_quietly
from system.terminal import discard_stdout, show_any_text

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # `OSError.errno` of a full disk, quota or file system
ON_DISK = (
    *NO_SPACE,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EISDIR,
)


class UserError(Exception):
    """A mistake in the user's input or environment. The message is one line: the thing, what was expected, what to do.

    `system.errors.command` prints the message without a traceback.
    """


class RankError(UserError):
    """A `UserError` that not every rank meets: the ranks that raise it print it."""


class NothingToDo(Exception):
    """What the command should do is done already. The message is one line; `command` prints it and exits with 0."""


class NetworkError(Exception):
    """A request failed in a way that may pass. Can be pickled, unlike most errors of network libraries."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after  # seconds that the server asked to wait


def require(ok, name, value, wanted):
    """Raise `UserError` for a setting's value unless `ok`."""
    if not ok:
        raise UserError(f"{name} = {value}: expected {wanted}")


def first_line(error):
    """What an exception says in one line: an `OSError` its reason, any other its type and the start of its message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def describe_disk_error(error):
    """One line for an `OSError` that the user can do something about (`ON_DISK`), or None for any other."""
    if error.errno not in ON_DISK:
        return None
    where = f"{error.filename}: " if error.filename else ""
    advice = "free some space and run it again" if error.errno in NO_SPACE else "choose another path"
    return f"{where}{error.strerror}; {advice}"


def command(main):
    """Decorate a script's `main` to turn expected exceptions into exit codes.

    A `UserError`, a full disk and a path that cannot be read or written are printed as one line on stderr, by rank 0
    only (a `RankError` by the rank that raises it), and exit with 2; `NothingToDo` on stdout, with 0. Ctrl-C exits with
    130. A closed stdout (`python sample.py | head`) exits with 0.
    """

    @functools.wraps(main)
    def run_main(*args, **kwargs):
        show_any_text()
        if signal.getsignal(signal.SIGINT) is exit_quietly:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            require_current_folder()
            result = main(*args, **kwargs)
            sys.stdout.flush()
            return result
        except UserError as error:
            fail(str(error), every_rank=isinstance(error, RankError))
        except NothingToDo as reason:
            if os.environ.get("RANK", "0") == "0":
                print(reason, flush=True)
            sys.exit(0)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr, flush=True)
            sys.exit(130)  # 128 + SIGINT, what a shell reports
        except BrokenPipeError:
            discard_stdout()
            sys.exit(0)
        except OSError as error:
            message = describe_disk_error(error)
            if message is None:
                raise
            if error.errno in NO_SPACE:
                discard_stdout()  # which may be what is full
            fail(message)

    return run_main


def require_current_folder():
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the current folder no longer exists: change to another one") from error


def fail(message, every_rank=False):
    """Print a user's mistake and exit with 2. Under torchrun only rank 0 prints what all ranks raise."""
    rank = os.environ.get("RANK", "0")
    if every_rank or rank == "0" or not rank.isdecimal():
        print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)
