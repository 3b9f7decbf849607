"""Errors that a user can fix end a command with one line and exit code 2; every other exception keeps its traceback."""

import functools
import os
import sys


class UserError(Exception):
    """A mistake in the user's input or environment. The message is one line: the thing, what was expected, what to do.

    `system.errors.command` prints the message without a traceback.
    """


class NothingToDo(Exception):
    """What the command should do is done already. The message is one line; `command` prints it and exits with 0."""


def require(ok, name, value, wanted):
    """Raise `UserError` for a setting's value unless `ok`."""
    if not ok:
        raise UserError(f"{name} = {value}: expected {wanted}")


def command(main):
    """Decorate a script's `main` to turn expected exceptions into exit codes.

    A `UserError` is printed as one line on stderr, by rank 0 only, and exits with 2; `NothingToDo` on stdout, with 0.
    Ctrl-C exits with 130. A closed stdout (`python sample.py | head`) exits with 0.
    """

    @functools.wraps(main)
    def run_main(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":  # under torchrun every rank raises the same error
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except NothingToDo as reason:
            if os.environ.get("RANK", "0") == "0":
                print(reason, flush=True)
            sys.exit(0)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr, flush=True)
            sys.exit(130)  # 128 + SIGINT, what a shell reports
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails to flush stdout at exit
            sys.exit(0)

    return run_main
