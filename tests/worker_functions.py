"""Functions that tests run in spawned worker processes, which must be able to import them."""

import os
import signal
import time
from pathlib import Path

from system.errors import NetworkError


def square_slowly(number):
    time.sleep(0.02 * (number % 3))
    return number * number


def kill_own_process(number):
    os.kill(os.getpid(), signal.SIGKILL)


def abort_at_three(number):
    """End the process as pyarrow does on some damaged files."""
    if number == 3:
        os.abort()
    return number


def fail_once(path):
    """Raise `NetworkError` the first time that `path` is given."""
    if not Path(path).exists():
        Path(path).touch()
        raise NetworkError(f"{Path(path).name} is busy")
    return Path(path).name


def raise_error(error):
    raise error
