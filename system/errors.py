"""What a user's mistake looks like: one line, exit code 2, no traceback.

Anything else that is raised is a fault of ours and keeps its traceback.
"""

import functools
import os
import sys


class UserError(Exception):
    """A mistake that the user can mend. The message is one line: the thing, what was expected, what to do."""


def require(ok, name, value, wanted):
    """Raise `UserError` for a setting's value unless `ok`."""
    if not ok:
        raise UserError(f"{name} = {value}: expected {wanted}")


def command(main):
    """Decorate a script's `main`: a `UserError` becomes one line on stderr and exit code 2.

    Under torchrun every rank meets the same mistake, so only the first rank prints it.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr, flush=True)
            sys.exit(130)  # 128 + SIGINT, what a shell reports
        except BrokenPipeError:  # `python sample.py | head`: the reader has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    return run
