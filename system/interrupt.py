"""Imported first by each command: Ctrl-C while the other modules are imported ends it without a traceback, with 130.

Importing torch takes seconds, in which `main` cannot catch anything. This is the one module that acts when it is
imported, and only if a command of this repository is being run; `command` then restores Python's own handler.
"""

import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def exit_quietly(number, frame):
    os.write(2, b"\ninterrupted\n")
    os._exit(130)  # 128 + SIGINT, what a shell reports


def runs_a_command():
    """Whether the main program is a script in the root of this repository."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return script is not None and os.path.dirname(os.path.abspath(script)) == ROOT


if runs_a_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # workers ignore Ctrl-C
    signal.signal(signal.SIGINT, exit_quietly)
