"""Asking a run to stop: the first SIGTERM, SIGUSR1 or Ctrl-C is a request, the second Ctrl-C an order.

A request is only noted; the loop finishes its step, agrees with the other ranks, saves and exits with code 0. (Not with
another code: torchrun restarts a group whose worker fails.)
"""

import os
import signal
import time

ECHO_S = 3.0  # torchrun passes on the Ctrl-C that its workers have already had from the terminal


class StopRequest:
    """`requested` turns true when a signal asks this process to stop. A context: at its end old handlers are back."""

    def __init__(self, print=print):
        self.requested = False
        self.print = print
        self.interrupted_at = None  # when the first Ctrl-C came
        self.previous = {}

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
            echo = "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - (self.interrupted_at or 0) < ECHO_S
            if self.interrupted_at is not None and not echo:
                raise KeyboardInterrupt
            self.interrupted_at = time.monotonic()
        if not self.requested:
            again = "; again stops at once" if number == signal.SIGINT else ""
            self.print(f"{signal.Signals(number).name}: finishing this step, then saving{again}")
        self.requested = True
