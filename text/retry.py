"""Retry requests to the Hugging Face hub when the network fails, with growing pauses and a visible countdown.

Errors that may pass (HTTP 429, dropped connections, a hub that is down) are retried; errors that will not pass (no
such data set, no access, a full disk) become a `UserError` at once.
"""

import logging
import re
import sys
import textwrap
import threading
import time

from tqdm import tqdm

from system.errors import UserError
from system.files import NO_SPACE

RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)  # HTTP
REFUSED_STATUS = (401, 403, 404)
NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet", "fsspec", "aiohttp")
LONGEST_PAUSE = 120.0  # seconds


class NetworkError(Exception):
    """A request failed in a way that may pass. Can be pickled, unlike most errors of network libraries."""

    def __init__(self, message, retry_after=0.0):
        super().__init__(message)
        self.retry_after = retry_after  # seconds that the server asked to wait


class Retry:
    """Waits 1, 2, 4, … seconds between attempts, `limit` seconds in total since the last success."""

    def __init__(self, limit, less_data):
        self.limit, self.less_data = limit, less_data  # `less_data`: the option to suggest in the error message
        self.waited, self.pause = 0.0, 1.0

    def call(self, function, *args, **kwargs):
        """Return `function(*args, **kwargs)`, called again each time the network fails."""
        while True:
            try:
                result = function(*args, **kwargs)
                self.reset()
                return result
            except Exception as error:  # each network library has its own; `wait` tells them from other errors
                if not self.wait(error):
                    raise

    def wait(self, error):
        """Sleep before the next attempt and return True; False if `error` is not a network error.

        Raises `UserError` when the limit is reached or another attempt would not help.
        """
        reason = describe_network_error(error)
        if reason is None:
            return False
        if self.waited >= self.limit:
            raise self.limit_reached(reason) from error
        pause = min(max(self.pause, requested_pause(error)), max(self.limit - self.waited, 1.0))
        count_down(pause, reason)
        self.waited += pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        return True

    def limit_reached(self, reason):
        return UserError(
            f"{reason}; gave up after {self.waited:.0f} s. Finished work is kept, and the same command continues it."
            " Three ways out: a mirror (HF_ENDPOINT=https://…); the cache of a machine that has the data (copy its"
            f" HF_HOME, set HF_HUB_OFFLINE=1); less data ({self.less_data})"
        )

    def reset(self):
        """Start again with the shortest pause and the full time limit."""
        self.waited, self.pause = 0.0, 1.0


def count_down(seconds, reason):
    """Sleep, and show the remaining time: every second on a terminal, one line in a file."""
    end, terminal = time.monotonic() + seconds, sys.stderr.isatty()
    if not terminal:
        tqdm.write(f"{reason}; trying again in {seconds:.0f} s", file=sys.stderr)
    while (left := end - time.monotonic()) > 0:
        if terminal:
            print(f"\r{reason}; trying again in {left:3.0f} s ", end="", file=sys.stderr, flush=True)
        time.sleep(min(left, 1.0))
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def describe_network_error(error):
    """One clause about the network error behind an exception; None if the network is not the cause.

    Raises `UserError` for a download that another attempt would not help.
    """
    for cause in causes(error):
        if isinstance(cause, UserError):
            return None
        if isinstance(cause, NetworkError):
            return str(cause)
        refuse_permanent_error(cause)
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in RETRIED_STATUS:
            return describe_status(status)
        library = type(cause).__module__.partition(".")[0]
        if library in NETWORK_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError)):
            reason = textwrap.shorten(f"{type(cause).__name__}: {cause}", 80, placeholder=" …")
            return f"the connection to {endpoint()} failed ({reason})"
    return None


def refuse_permanent_error(error):
    """Raise `UserError` for a full disk and for a request that the hub refuses."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        from huggingface_hub import constants

        raise UserError(
            f"no space left for downloads in {constants.HF_HUB_CACHE}: free some and run the same command again, set"
            " HF_HOME to a folder on another disk, or tokenize without a copy on disk (fineweb.py --streaming)"
        ) from error
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in REFUSED_STATUS:
        url = getattr(response, "url", endpoint())
        raise UserError(f"{url}: the hub answers {status}; check the name, or set HF_TOKEN") from error


def describe_status(status):
    if int(status) == 429:
        return "the hub answers HTTP 429 (too many requests)"
    return f"the hub answers HTTP {status}"


def causes(error):
    """An exception and the exceptions that led to it."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def requested_pause(error):
    """The seconds that the server asked to wait (Retry-After); 0 if it did not."""
    for cause in causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        text = headers.get("Retry-After", "")
        if text.isdigit():
            return float(text)
    return getattr(error, "retry_after", 0.0)


def endpoint():
    """The address of the hub, which HF_ENDPOINT sets."""
    from huggingface_hub import constants

    return constants.ENDPOINT


class CountDownHandler(logging.Handler):
    """Shows our countdown for the retries that `huggingface_hub` makes by itself, recognised by its log messages."""

    reason = "the hub does not answer"

    def emit(self, record):
        text = record.getMessage()
        if status := re.search(r"HTTP Error (\d+)", text):
            self.reason = describe_status(status[1])
        elif "thrown while requesting" in text:
            self.reason = f"the connection to {endpoint()} failed"
        elif seconds := re.search(r"(?:Waiting|Retrying in) ([\d.]+)s", text):
            threading.Thread(target=count_down, args=(float(seconds[1]), self.reason), daemon=True).start()


def show_library_retries():
    """Replace the progress bars and warnings of `datasets` and `huggingface_hub` by our countdown."""
    import datasets
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [CountDownHandler()], False
