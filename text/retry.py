"""Retry requests to the Hugging Face hub when the network fails, with growing pauses and a visible countdown.

Errors that may pass (HTTP 429, dropped connections, a hub that is down) are retried; errors that will not pass (no
such data set, no access, a full disk) become a `UserError` at once.
"""

import concurrent.futures
import socket
import sys
import textwrap
import time

from tqdm import tqdm

from system.background import in_background
from system.errors import NO_SPACE, NetworkError, UserError

RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)  # HTTP
REFUSED_STATUS = (401, 403, 404)
NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet", "fsspec", "aiohttp")
LONGEST_PAUSE = 120.0  # seconds
ATTEMPT_S = 10.0  # what an attempt may take, however small the budget is
STALL_S = 120.0  # and a download without reporting a byte: the library reports each 10 MB
POLL_S = 0.2


class Retry:
    """Waits 1, 2, 4, … seconds between attempts.

    Attempts and pauses take `limit` seconds in total since the last success. This is the only budget: the libraries'
    own retries are off, see `hub.make_single_attempts`. A host whose name does not resolve is given up at once, unless
    a request of this command has succeeded before.
    """

    def __init__(self, limit, less_data):
        self.limit, self.less_data = limit, less_data  # `less_data`: the option to suggest in the error message
        self.reached = False  # whether any request of this command has succeeded
        self.waited, self.pause = 0.0, 1.0
        self.began = None  # when the current attempt began, in seconds of the monotonic clock; None: unknown

    def call(self, function, *args, received=None, **kwargs):
        """Return `function(*args, **kwargs)`, called again each time the network fails.

        It runs in a thread: it is given up when the budget is spent, whatever it waits for. For a download, `received`
        returns the bytes so far; while they grow, the attempt may take any time.
        """
        while True:
            self.began = time.monotonic()
            try:
                result = self.result_of(in_background(function, *args, **kwargs), received)
                self.reset()
                return result
            except Exception as error:  # each network library has its own; `wait` tells them from other errors
                if not self.wait(error):
                    raise

    def result_of(self, future, received):
        """The result of a future. Raises `NetworkError` when the budget is spent."""
        limit, count = max(self.limit, ATTEMPT_S if received is None else STALL_S), 0
        while not concurrent.futures.wait([future], timeout=POLL_S).done:
            if received is not None and received() > count:
                self.reset()
                self.began, count = time.monotonic(), received()
            if self.waited + time.monotonic() - self.began > limit:
                raise NetworkError(f"{endpoint()} does not answer")
        return future.result()

    def wait(self, error):
        """Sleep before the next attempt and return True; False if `error` is not a network error.

        Raises `UserError` when the limit is reached or another attempt would not help.
        """
        reason = describe_network_error(error)
        if reason is None:
            return False
        if self.began is not None:
            self.waited += time.monotonic() - self.began
        if self.waited >= self.limit or (has_no_address(error) and not self.reached):
            raise self.limit_reached(reason) from error
        pause = min(max(self.pause, requested_pause(error)), self.limit - self.waited)
        count_down(pause, reason)
        self.waited += pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)
        self.began = time.monotonic()
        return True

    def limit_reached(self, reason):
        return UserError(
            f"{reason}; gave up after {self.waited:.0f} s. Finished work is kept, and the same command continues it."
            " Three ways out: a mirror (HF_ENDPOINT=https://…); the cache of a machine that has the data (copy its"
            f" HF_HOME, set HF_HUB_OFFLINE=1); less data ({self.less_data})"
        )

    def reset(self):
        """Start again with the shortest pause and the full time limit, after a success."""
        self.reached, self.began = True, None
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
        if has_no_address(error):
            return f"the name of {endpoint()}, or of a proxy, does not resolve (no network?)"
        library = type(cause).__module__.partition(".")[0]
        if library in NETWORK_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError)):
            reason = textwrap.shorten(f"{type(cause).__name__}: {cause}", 80, placeholder=" …")
            return f"the connection to {endpoint()} failed ({reason})"
    return None


def has_no_address(error):
    """Whether a host's name that does not resolve is behind an exception."""
    return any(isinstance(cause, socket.gaierror) for cause in causes(error))


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
        private = " of an account that has access (private or gated data)" if status in (401, 403) else ""
        raise UserError(f"{url}: the hub answers {status}; check the name, or set HF_TOKEN{private}") from error


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
        if isinstance(cause, NetworkError):
            return cause.retry_after
        if hasattr(cause, "response"):
            return retry_after(cause.response)
    return 0.0


def retry_after(response):
    """The seconds in a response's Retry-After; 0 if it has none."""
    text = (getattr(response, "headers", None) or {}).get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def endpoint():
    """The address of the hub, which HF_ENDPOINT sets."""
    from huggingface_hub import constants

    return constants.ENDPOINT
