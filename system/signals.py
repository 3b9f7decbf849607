"""Stop a run on a signal: SIGTERM, SIGUSR1 and the first Ctrl-C stop it after the step, a second Ctrl-C at once.

The handlers only set a flag. The training loop reads it after each step, agrees on it with the other ranks, saves a
checkpoint and exits with code 0. (With any other code torchrun would restart the group.)
"""

import os
import signal
import time

REPEAT_S = 3.0  # torchrun forwards the Ctrl-C that its workers have already received from the terminal


class StopRequest:
    """A context that handles signals: `requested` is True once a signal has asked this process to stop.

    A second Ctrl-C raises `KeyboardInterrupt`. Leaving the context restores the previous handlers.
    """

    def __init__(self, print=print):
        self.requested = False
        self.print = print
        self.last_interrupt = None  # time of the last Ctrl-C, in seconds of the monotonic clock
        self.previous = {}  # {signal number: its handler outside the context}

    def __enter__(self):
        names = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            self.previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, kind, value, traceback):
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def handle(self, number, frame):
        if number == signal.SIGINT:
            if self.last_interrupt is not None and not self.is_forwarded():
                raise KeyboardInterrupt
            self.last_interrupt = time.monotonic()
        if not self.requested:
            hint = "; a second Ctrl-C stops at once" if number == signal.SIGINT else ""
            self.print(f"{signal.Signals(number).name}: finishing this step, then saving{hint}")
        self.requested = True

    def is_forwarded(self):
        """Whether a SIGINT that arrives now is torchrun's copy of the last one."""
        return "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.last_interrupt < REPEAT_S
