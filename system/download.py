"""Download a file whose SHA-256 is known in advance: resumable, and never used without the checksum."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from system.background import in_background
from system.boundary import require_regular_file
from system.errors import UserError

TIMEOUT = 20  # seconds without an answer
LARGEST = 2 << 30  # bytes of a file: far more than any that this repository downloads
SLOWEST = 2_000  # bytes/s on average, after the first TIMEOUT seconds: a slower server is given up


def download(url, path, sha256, instead):
    """Download `url` to `path` (a `Path`), continuing from `path`.part if an earlier attempt was interrupted.

    Raises `UserError` if that fails; `instead` ends the message and tells what the user can do instead.
    """
    reason = try_download(url, path, sha256)
    if reason is not None:
        raise UserError(
            f"{url} could not be downloaded ({reason}): run it again to continue the download, or save the file as"
            f" {path}; {instead}"
        )


def download_from_any(urls, path, sha256, instead):
    """Download to `path` from the first of `urls` that works, unless the file is already there."""
    if path.exists():
        require_regular_file(path, f"the file {path.name}, or nothing")
        if has_checksum(path, sha256):
            return
    for url in urls:
        print(f"fetching {url}", flush=True)
        reason = try_download(url, path, sha256)
        if reason is None:
            return
        print(f"  failed: {reason}", flush=True)
    raise UserError(f"{path.name} could not be fetched from {len(urls)} places: {instead}, or save the file as {path}")


def try_download(url, path, sha256):
    """Download `url` to `path`; returns None, or the reason why the network, the disk or the checksum failed."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if part.exists():
            require_regular_file(part, "the beginning of a download, or nothing")
        download_rest(url, part)
        if not has_checksum(part, sha256):
            part.unlink()
            return "the file has another checksum than expected and was deleted"
        os.replace(part, path)
    except http.client.HTTPException as error:  # an answer that is no HTTP
        return f"{type(error).__name__}: {error}"
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors; ValueError: not a URL
        return getattr(error, "reason", None) or str(error) or type(error).__name__
    return None


def has_checksum(path, sha256):
    """Whether the SHA-256 of a file is `sha256` (hexadecimal)."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() == sha256


def download_rest(url, part):
    """Append the missing bytes to `part`, or download all of it if the server does not support ranges."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        # in a thread, because a server that sends its headers byte by byte never reaches urllib's own time limit
        response = in_background(urllib.request.urlopen, request, timeout=TIMEOUT).result(2 * TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # range not satisfiable: `part` is already complete
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as f:
        have = f.tell()
        total = have + int(response.headers.get("Content-Length", 0))
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            for chunk in read_chunks(response, LARGEST - have):
                f.write(chunk)
                bar.update(len(chunk))
        if f.tell() < total:
            raise ConnectionError("the connection broke off")


def read_chunks(response, limit):
    """Yield the body of a response as it arrives. Raises `OSError` for more than `limit` bytes and a slow server."""
    received, began = 0, time.monotonic()
    while chunk := response.read1(1 << 16):
        received += len(chunk)
        if received > limit:
            raise OSError(f"the server sends more than {LARGEST:,} bytes")
        if received < SLOWEST * (time.monotonic() - began - TIMEOUT):
            raise TimeoutError(f"the server sends less than {SLOWEST:,} bytes a second")
        yield chunk
