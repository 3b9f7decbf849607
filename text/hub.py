"""Data files on the Hugging Face hub, over networks that are slow, limited or absent.

What is worth waiting for (HTTP 429, dropped connections, a hub that is down) is told from what isn't (no such data
set, no access), and waited out with growing pauses and a count-down. The libraries honour HF_ENDPOINT (a mirror),
HF_TOKEN, HF_HOME (the cache) and the proxy variables.
"""

import concurrent.futures
import io
import logging
import os
import re
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from system.errors import UserError
from system.files import NO_SPACE

SCHEME = "hf://datasets/"
WORTH_WAITING = (408, 425, 429, 500, 502, 503, 504)  # HTTP status
NETWORK_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "hf_xet", "fsspec", "aiohttp")


class NetworkTrouble(Exception):
    """A request failed in a way that may pass. It travels between processes, which most errors of libraries can't."""

    retry_after = 0.0  # seconds that the server asked for


class HubFile(NamedTuple):
    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, url):
        """`hf://datasets/OWNER/NAME@REVISION/PATH`"""
        owner, name, path = url.removeprefix(SCHEME).split("/", 2)
        name, _, revision = name.partition("@")
        return cls(f"{owner}/{name}", revision, path)


class Patience:
    """Waits for a network: 1, 2, 4, … seconds between attempts, `limit` seconds in all since it last worked."""

    def __init__(self, limit, smaller):
        self.limit, self.smaller = limit, smaller  # the option that asks for less data
        self.waited, self.pause = 0.0, 1.0

    def call(self, function, *args, **kwargs):
        """`function(…)`, again and again while the network is to blame."""
        while True:
            try:
                result = function(*args, **kwargs)
                self.reset()
                return result
            except Exception as error:
                if not self.wait(error):
                    raise

    def wait(self, error):
        """Wait before another attempt; False where `error` isn't the network's. Raises `UserError` to give up."""
        trouble = find_trouble(error)
        if trouble is None:
            return False
        if self.waited >= self.limit:
            raise self.give_up(trouble) from error
        pause = min(max(self.pause, asked_pause(error)), max(self.limit - self.waited, 1.0))
        count_down(pause, trouble)
        self.waited += pause
        self.pause = min(2 * self.pause, 120.0)
        return True

    def give_up(self, trouble):
        return UserError(
            f"{trouble}; gave up after {self.waited:.0f} s. What is finished stays, and the same command goes on."
            " Three ways out: a mirror (HF_ENDPOINT=https://…); the cache of a machine that has the data (copy its"
            f" HF_HOME, set HF_HUB_OFFLINE=1); less data ({self.smaller})"
        )

    def reset(self):
        self.waited, self.pause = 0.0, 1.0


def count_down(seconds, trouble):
    """Wait, and say so, once a second on a terminal, once in a file."""
    end, terminal = time.monotonic() + seconds, sys.stderr.isatty()
    if not terminal:
        tqdm.write(f"{trouble}; trying again in {seconds:.0f} s", file=sys.stderr)
    while (left := end - time.monotonic()) > 0:
        if terminal:
            print(f"\r{trouble}; trying again in {left:3.0f} s ", end="", file=sys.stderr, flush=True)
        time.sleep(min(left, 1.0))
    if terminal:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def find_trouble(error):
    """In words, what went wrong with the network, or None where that isn't it. Raises `UserError` if it won't pass."""
    for cause in chain(error):
        if isinstance(cause, UserError):
            return None
        if isinstance(cause, NetworkTrouble):
            return str(cause)
        if isinstance(cause, OSError) and cause.errno in NO_SPACE:
            raise UserError(
                f"no space left for downloads in {cache_folder()}: make room and run the same command again, set"
                " HF_HOME to a folder on another disk, or tokenize without a copy on disk (fineweb.py --streaming)"
            ) from error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status in (401, 403, 404):
            url = getattr(cause.response, "url", endpoint())
            raise UserError(f"{url}: the hub answers {status}; check the name, or set HF_TOKEN") from error
        if status in WORTH_WAITING:
            return busy(status)
        library = type(cause).__module__.partition(".")[0]
        if library in NETWORK_LIBRARIES or isinstance(cause, (ConnectionError, TimeoutError)):
            reason = textwrap.shorten(f"{type(cause).__name__}: {cause}", 80, placeholder=" …")
            return f"the connection to {endpoint()} failed ({reason})"
    return None


def busy(status):
    return f"the hub answers HTTP {status}" + (" (too many requests)" if int(status) == 429 else "")


class Announcer(logging.Handler):
    """Shows the waits that `huggingface_hub` makes by itself, as it logs them, like our own."""

    def emit(self, record):
        text = record.getMessage()
        if status := re.search(r"HTTP Error (\d+)", text):
            self.trouble = busy(status[1])
        elif "thrown while requesting" in text:
            self.trouble = f"the connection to {endpoint()} failed"
        elif seconds := re.search(r"(?:Waiting|Retrying in) ([\d.]+)s", text):
            trouble = getattr(self, "trouble", "the hub does not answer")
            threading.Thread(target=count_down, args=(float(seconds[1]), trouble), daemon=True).start()


def announce_waits():
    """Put our count-down in the place of the libraries' bars and warnings."""
    import datasets
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    logger = logging.getLogger("huggingface_hub")
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [Announcer()], False


def chain(error):
    """An exception and what led to it."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


def asked_pause(error):
    """Seconds that the server asked to wait, if it did."""
    for cause in chain(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        text = headers.get("Retry-After", "")
        if text.isdigit():
            return float(text)
    return getattr(error, "retry_after", 0.0)


def endpoint():
    from huggingface_hub import constants

    return constants.ENDPOINT


def cache_folder():
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def not_cached(what):
    return UserError(
        f"{what} is not in the cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids to fetch it: unset that, or"
        " copy the cache (HF_HOME) of a machine that has it, or name files with --source"
    )


def offline():
    """Whether the user's environment forbids requests."""
    import datasets.config
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE


def list_data_files(repo, subset, split="train"):
    """The files of a data set's split, in order: [(url, bytes)]. Raises `UserError` where there is no such subset."""
    import datasets
    from huggingface_hub import HfFileSystem, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if offline():
        return list_cached_files(repo, subset, split)
    try:  # by commit, so that all that follows is of one state of the data set
        revision = Path(hf_hub_download(repo, "README.md", repo_type="dataset")).parent.name
    except RemoteEntryNotFoundError:
        revision = None
    try:
        builder = datasets.load_dataset_builder(repo, subset, revision=revision)
    except ValueError as error:  # `datasets` says which there are
        raise UserError(f"{repo}: {' '.join(str(error).split())[:300]}") from error
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise UserError(f"{error} Check the name, or set HF_TOKEN") from error
    urls = (builder.config.data_files or {}).get(split)
    if not urls:
        raise UserError(f"{repo} has no split {split!r} in {subset or 'its default subset'}")
    files = HfFileSystem()
    return [(url, files.info(url)["size"]) for url in urls]


def list_cached_files(repo, subset, split):
    """What `list_data_files` would say, of the files that the cache holds: no request is made."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        card = Path(hf_hub_download(repo, "README.md", repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise not_cached(repo) from error
    configs = {config["config_name"]: config["data_files"] for config in DatasetCard.load(card).data.configs or []}
    if subset and subset not in configs:
        raise UserError(f"{repo} has no subset {subset!r}; it has {', '.join(configs)}")
    entries = configs.get(subset or "default", f"**/*{split}*.parquet")
    patterns = []
    for entry in [entries] if isinstance(entries, str) else entries:
        if isinstance(entry, str):
            patterns.append(entry)
        elif entry["split"] == split:
            patterns += [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
    folder = card.parent
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise not_cached(f"{repo} {subset or ''}".strip())
    return [(f"{SCHEME}{repo}@{folder.name}/{p.relative_to(folder).as_posix()}", p.stat().st_size) for p in found]


def cached(url):
    """The local copy of a file, or None."""
    from huggingface_hub import try_to_load_from_cache

    file = HubFile.parse(url)
    found = try_to_load_from_cache(file.repo, file.path, repo_type="dataset", revision=file.revision)
    return found if isinstance(found, str) else None


def download(url, on_bytes=lambda count: None):
    """Fetch a whole file into the cache; `on_bytes` hears how much has come. Returns its path."""
    from huggingface_hub import hf_hub_download

    class Bar(tqdm):
        def display(self, *args, **kwargs):
            on_bytes(self.n)

    file = HubFile.parse(url)
    return hf_hub_download(file.repo, file.path, repo_type="dataset", revision=file.revision, tqdm_class=Bar)


def fetch(url, patience):
    """`find_copy`, with a bar and with patience."""
    with tqdm(unit="B", unit_scale=True, desc=f"fetching {url.rpartition('/')[2]}", leave=False) as bar:
        return patience.call(find_copy, url, on_bytes=lambda count: bar.update(count - bar.n))


def find_copy(url, stream=False, on_bytes=lambda count: None):
    """Where to read a file from: its copy in the cache, fetched if need be, or with `stream` the url itself."""
    found = cached(url)
    if found is None and offline():
        raise not_cached(url)
    return found or (url if stream else download(url, on_bytes))


def in_background(function, *args):
    """A future of `function(*args)`, in a thread that doesn't keep the process from ending."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class RangeReader(io.RawIOBase):
    """A file on the hub, read by ranges: only what is asked for crosses the network.

    `HfFileSystem` does the same, but fetches 5 MB around each read and waits out trouble in silence.
    """

    def __init__(self, url):
        from huggingface_hub import hf_hub_url

        file = HubFile.parse(url)
        self.url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.revision)
        self.position = 0
        self.size = int(self.get("bytes=0-0").headers["Content-Range"].rpartition("/")[2])

    def get(self, range_):
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = build_hf_headers() | {"Range": range_, "Accept-Encoding": "identity"}
        try:
            response = get_session().get(self.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        except Exception as error:
            trouble = find_trouble(error)
            if trouble is None:
                raise
            raise trouble_with_pause(trouble, asked_pause(error)) from None
        if response.status_code != 206:
            raise NetworkTrouble(f"{self.url}: asked for a range, got HTTP {response.status_code}")
        return response

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self.position

    def seek(self, offset, whence=os.SEEK_SET):
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def read(self, count=-1):
        count = self.size - self.position if count is None or count < 0 else min(count, self.size - self.position)
        if count <= 0:
            return b""
        data = self.get(f"bytes={self.position}-{self.position + count - 1}").content
        if len(data) != count:
            raise NetworkTrouble(f"{self.url}: asked for {count:,} bytes, got {len(data):,}")
        self.position += count
        return data


def trouble_with_pause(trouble, pause):
    error = NetworkTrouble(trouble)
    error.retry_after = pause
    return error
