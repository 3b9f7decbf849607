"""Print for a program that goes on whether or not its output can be shown: the terminal is not the run."""

import os
import select
import sys

PATIENCE_S = 2.0  # a reader may pause for so long before lines are dropped
CHUNK = getattr(select, "PIPE_BUF", 512) // 4  # characters, in UTF-8 at most as many bytes as a writable pipe takes


class Terminal:
    """Prints on stdout and never raises: a full disk or a closed pipe ends the output, a blocked pipe drops lines."""

    def __init__(self):
        self.lost = None  # why output was lost, once that has happened
        self.closed = False  # nothing is printed any more
        self.blocked = False  # the last line was dropped because nothing read the lines before it

    def print(self, *args):
        """Print one line and flush it."""
        if self.closed or sys.stdout is None:
            return
        try:
            self.blocked = not write_line(sys.stdout, args, 0.0 if self.blocked else PATIENCE_S)
            if self.blocked:
                self.report_loss("nothing reads it")
        except (OSError, ValueError) as error:  # ValueError: stdout is closed
            self.closed = True
            discard_stdout()
            self.report_loss(getattr(error, "strerror", None) or str(error))

    def report_loss(self, reason):
        """Say on stderr, once, that output was lost."""
        if self.lost is None:
            self.lost = reason
            try:
                write_line(sys.stderr, (f"warning: output was lost ({reason}); the program goes on",), 0.0)
            except (OSError, ValueError, AttributeError):  # AttributeError: stderr is None
                pass


def write_line(stream, args, patience):
    """Write and flush a line without blocking for longer than `patience` seconds. Returns whether all was written."""
    text = " ".join(map(str, args)) + "\n"
    for i in range(0, len(text), CHUNK):
        if not wait_until_writable(stream, patience):
            return False
        stream.write(text[i : i + CHUNK])
        stream.flush()
    return True


def wait_until_writable(stream, seconds):
    """Whether a write to `stream` would not block, at the latest after `seconds`."""
    try:
        return bool(select.select([], [stream], [], seconds)[1])
    except (OSError, ValueError):  # it has no file descriptor, or none that can be waited for (Windows)
        return True


def discard_stdout():
    """Connect stdout to nothing, so that Python does not fail to flush it when the program ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        pass


def show_any_text():
    """Let stdout show characters that its encoding lacks (ASCII, cp1252) as escapes instead of raising."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
