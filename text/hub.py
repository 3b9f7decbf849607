"""Data files on the Hugging Face hub: list them, download them into the cache, or read parts of them by range.

`huggingface_hub` and `datasets` honour HF_ENDPOINT (a mirror), HF_TOKEN, HF_HOME (the cache), HF_HUB_OFFLINE and the
proxy variables. Functions that make requests raise the libraries' own errors; call them through `retry.Retry`.
"""

import contextlib
import functools
import io
import os
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from system.background import in_background
from system.boundary import foreign
from system.download import SLOWEST, TIMEOUT
from system.errors import NetworkError, UserError
from text.retry import RETRIED_STATUS, describe_network_error, describe_status, requested_pause, retry_after

SCHEME = "hf://datasets/"
SPLITS = ("train", "validation", "test")  # those looked for in the cache


class HubFile(NamedTuple):
    repo: str
    revision: str
    path: str

    @classmethod
    def parse(cls, url):
        """Parse `hf://datasets/OWNER/NAME@REVISION/PATH`."""
        owner, name, path = url.removeprefix(SCHEME).split("/", 2)
        name, _, revision = name.partition("@")
        return cls(f"{owner}/{name}", revision, path)


def is_remote(path):
    """Whether `path` is the URL of a file on the hub."""
    return path.startswith(SCHEME)


def is_offline():
    """Whether the user's environment forbids requests."""
    import datasets.config
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE


class NotCachedError(UserError):
    """A file is needed that is not in the cache, and requests are forbidden."""


def not_cached(what):
    return NotCachedError(
        f"{what} is not in the cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids downloads: unset that variable,"
        " copy the cache (HF_HOME) of a machine that has the data, or name files on this machine"
    )


@functools.cache  # once: another call would close connections in use
def make_single_attempts():
    """Give `huggingface_hub` a client without retries, so that `retry.Retry` is the only one that waits.

    The library retries its own kinds of exceptions, for up to a minute a request and without telling the user. This
    client raises a `NetworkError` in their place, which the library passes on.
    """
    import datasets
    import huggingface_hub.utils
    from huggingface_hub import get_session, set_client_factory

    default = get_session()

    class SingleAttemptClient(type(default)):
        def send(self, request, **options):
            try:
                response = super().send(request, **options)
            except Exception as error:  # of any network library; others are raised again
                raise_network_error(error)
            if response.status_code in RETRIED_STATUS:
                response.close()
                raise NetworkError(describe_status(response.status_code), retry_after(response))
            return response

    options = {"event_hooks": default.event_hooks, "follow_redirects": True, "timeout": None}
    set_client_factory(lambda: SingleAttemptClient(**options))
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    datasets.utils.logging.set_verbosity_error()


def raise_network_error(error):
    """Raise an exception again, as a `NetworkError` if the network is the cause."""
    reason = describe_network_error(error)
    if reason is None:
        raise error
    raise NetworkError(reason, requested_pause(error)) from error


# ---- which files ----


def list_data_files(repo, subset, split="train"):
    """The files of a data set's split, in order: [(url, bytes)]. Raises `UserError` if there is no such subset."""
    if is_offline():
        return list_cached_files(repo, subset, split)
    files = list_splits(repo, subset).get(split)
    if not files:
        raise UserError(f"{repo} has no split {split!r} in {subset or 'its default subset'}")
    return files


def list_splits(repo, subset):
    """{split: its files in order, [(url, bytes)]}. Raises `UserError` if there is no such subset."""
    import datasets
    from huggingface_hub import HfFileSystem, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if is_offline():
        return list_cached_splits(repo, subset)
    make_single_attempts()
    try:  # the commit of the main branch, so that all later requests see the same state of the data set
        revision = Path(hf_hub_download(repo, "README.md", repo_type="dataset")).parent.name
    except RemoteEntryNotFoundError:
        revision = None
    try:
        builder = datasets.load_dataset_builder(repo, subset, revision=revision)
    except ValueError as error:  # its message lists the subsets
        reason = " ".join(str(error).partition("Example")[0].split())[:300]
        raise UserError(f"{repo}: {reason}") from error
    except (datasets.exceptions.DatasetNotFoundError, datasets.exceptions.DataFilesNotFoundError) as error:
        raise UserError(f"{error} Check the name, or set HF_TOKEN") from error
    files = HfFileSystem()
    splits = builder.config.data_files or {}
    return {str(split): [(url, files.info(url)["size"]) for url in urls] for split, urls in splits.items()}


def list_cached_splits(repo, subset):
    """What `list_splits` returns, of the splits in the cache, without any request."""
    found = {}
    for split in SPLITS:
        with contextlib.suppress(NotCachedError):
            found[split] = list_cached_files(repo, subset, split)
    if not found:
        raise not_cached(f"{repo} {subset or ''}".strip())
    return found


def list_cached_files(repo, subset, split):
    """What `list_data_files` returns, for the files in the cache, without any request."""
    from huggingface_hub import DatasetCard, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        card = Path(hf_hub_download(repo, "README.md", repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise not_cached(repo) from error
    with foreign(card, "a data set card"):
        configs = {config["config_name"]: config["data_files"] for config in DatasetCard.load(card).data.configs or []}
    if subset and subset not in configs:
        raise UserError(f"{repo} has no subset {subset!r}; it has {', '.join(configs)}")
    with foreign(card, "a data set card"):
        by_name = [f"**/*{split}*.{kind}*" for kind in ("parquet", "jsonl")]
        patterns = file_patterns(configs.get(subset or "default", by_name), split)
    folder = card.parent
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise not_cached(f"{repo} {subset or ''}".strip())
    return [(f"{SCHEME}{repo}@{folder.name}/{p.relative_to(folder).as_posix()}", p.stat().st_size) for p in found]


def file_patterns(data_files, split):
    """The glob patterns of a split in the `data_files` field of a data set card."""
    patterns = []
    for entry in [data_files] if isinstance(data_files, str) else data_files:
        if isinstance(entry, str):
            patterns.append(entry)
        elif entry["split"] == split:
            patterns += [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
    return patterns


# ---- where to read a file ----


def locate(path, stream=False, on_bytes=lambda count: None):
    """Where to read a file: its copy in the cache, downloaded if needed. A local path is returned unchanged.

    With `stream`, a file that is not in the cache is not downloaded: its URL is returned, for `RangeReader`.
    `on_bytes` receives the number of bytes downloaded so far.
    """
    if not is_remote(path):
        return path
    found = cached_copy(path)
    if found is not None:
        return found
    if is_offline():
        raise not_cached(path)
    return path if stream else download_to_cache(path, on_bytes)


def cached_copy(url):
    """The path of a file's copy in the cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    file = HubFile.parse(url)
    found = try_to_load_from_cache(file.repo, file.path, repo_type="dataset", revision=file.revision)
    return found if isinstance(found, str) else None


def download_to_cache(url, on_bytes):
    """Download a whole file into the cache; returns its path."""
    from huggingface_hub import hf_hub_download

    make_single_attempts()

    class Bar(tqdm):
        def display(self, *args, **kwargs):
            on_bytes(self.n)

    file = HubFile.parse(url)
    return hf_hub_download(file.repo, file.path, repo_type="dataset", revision=file.revision, tqdm_class=Bar)


def locate_with_bar(url, retry):
    """`locate` with a progress bar and retries."""
    with tqdm(unit="B", unit_scale=True, desc=f"fetching {url.rpartition('/')[2]}", leave=False, disable=None) as bar:
        count = [0]  # bytes so far

        def on_bytes(received):
            bar.update(received - count[0])
            count[0] = received

        return retry.call(locate, url, on_bytes=on_bytes, received=lambda: count[0])


class RangeReader(io.RawIOBase):
    """A read-only file on the hub; each read is one range request for exactly those bytes.

    `HfFileSystem` offers the same, but it fetches 5 MB around each read and retries without telling the user.
    """

    def __init__(self, url):
        from huggingface_hub import hf_hub_url

        make_single_attempts()
        file = HubFile.parse(url)
        self.url = hf_hub_url(file.repo, file.path, repo_type="dataset", revision=file.revision)
        self.position = 0
        length = self.get(0, 0).headers.get("Content-Range", "").rpartition("/")[2]
        if not length.isdecimal():
            raise NetworkError(f"{self.url}: the answer to a range request does not say how long the file is")
        self.size = int(length)

    def get(self, first, last):
        """The response to a request for bytes `first` … `last`, in limited time. Raises `NetworkError`."""
        seconds = TIMEOUT + (last - first) / SLOWEST
        try:
            return in_background(self.request, f"bytes={first}-{last}").result(seconds)
        except TimeoutError:
            raise NetworkError(f"{self.url}: no answer in {seconds:.0f} s") from None

    def request(self, byte_range):
        """The response to a range request. Raises `NetworkError`, which can be pickled, if the network fails."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        headers = build_hf_headers() | {"Range": byte_range, "Accept-Encoding": "identity"}
        try:
            response = get_session().get(self.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            hf_raise_for_status(response)
        except Exception as error:  # of any network library; others are raised again
            raise_network_error(error)
        if response.status_code != 206:
            raise NetworkError(f"{self.url}: asked for a range, got HTTP {response.status_code}")
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
        left = self.size - self.position
        count = left if count is None or count < 0 else min(count, left)
        if count <= 0:
            return b""
        data = self.get(self.position, self.position + count - 1).content
        if len(data) != count:
            raise NetworkError(f"{self.url}: asked for {count:,} bytes, got {len(data):,}")
        self.position += count
        return data
