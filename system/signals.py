"""Stop a run on a signal: SIGTERM, SIGUSR1 and the first Ctrl-C stop it after the step, a second Ctrl-C at once.

The handlers only set a flag. The training loop reads it after each step, agrees on it with the other ranks, saves a
checkpoint and exits with code 0. (With any other code torchrun would restart the group.)
"""

import os
import signal
import threading
import time

HANDLER_S = 1.0  # a single operation of torch can delay the handler for longer; then the line comes first
REPEAT_S = 3.0  # torchrun forwards the Ctrl-C that its workers have already received from the terminal


class StopRequest:
    """A context that handles signals: `requested` is True once a signal has asked this process to stop.

    A second Ctrl-C raises `KeyboardInterrupt`. A thread prints one line about the first signal: a handler must not,
    because it may have interrupted a print. Leaving the context restores the previous handlers.
    """

    def __init__(self, print=print):
        self.requested = False
        self.print = print
        self.last_interrupt = None  # time of the last Ctrl-C, in seconds of the monotonic clock
        self.previous = {}  # {signal number: its handler outside the context}

    def __enter__(self):
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)  # Python requires it
        self.thread = threading.Thread(target=self.announce, args=(reader,), daemon=True)
        self.thread.start()
        names = ("SIGTERM", "SIGUSR1", "SIGINT")  # Windows has no SIGUSR1
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            self.previous[number] = signal.signal(number, self.handle)
        self.previous_writer = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind, value, traceback):
        signal.set_wakeup_fd(self.previous_writer)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        os.close(self.writer)
        self.thread.join()

    def handle(self, number, frame):
        if number == signal.SIGINT:
            if self.last_interrupt is not None and not self.is_forwarded():
                raise KeyboardInterrupt
            self.last_interrupt = time.monotonic()
        self.requested = True

    def announce(self, reader):
        """Print a line about the first signal. Python writes the number of each to the pipe that `reader` reads."""
        announced = False
        with open(reader, "rb", buffering=0) as pipe:
            while number := pipe.read(1):  # until the other end is closed
                if number[0] in self.previous and not announced:
                    self.wait_for_handler()
                    hint = "; a second Ctrl-C stops at once" if number[0] == signal.SIGINT else ""
                    self.print(f"{signal.Signals(number[0]).name}: finishing this step, then saving{hint}")
                    announced = True

    def wait_for_handler(self):
        """Wait for `handle`: Python calls it between two bytecodes, and until then a second signal would be merged."""
        end = time.monotonic() + HANDLER_S
        while not self.requested and time.monotonic() < end:
            time.sleep(0.01)

    def is_forwarded(self):
        """Whether a SIGINT that arrives now is torchrun's copy of the last one."""
        return "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.last_interrupt < REPEAT_S
