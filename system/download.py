"""Download a file whose SHA-256 is known in advance: resumable, and never used without the checksum."""

import hashlib
import os
import urllib.error
import urllib.request

from tqdm import tqdm

from system.errors import UserError

TIMEOUT = 20  # seconds without an answer


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
    if path.exists() and has_checksum(path, sha256):
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
        download_rest(url, part)
    except (OSError, ValueError) as error:  # urllib's own errors are OSErrors; ValueError: not a URL
        return getattr(error, "reason", None) or error
    if not has_checksum(part, sha256):
        part.unlink()
        return "the file has another checksum than expected and was deleted"
    os.replace(part, path)
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
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # range not satisfiable: `part` is already complete
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as f:
        have = f.tell()
        total = have + int(response.headers.get("Content-Length", 0))
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None) as bar:
            while chunk := response.read(1 << 16):
                f.write(chunk)
                bar.update(len(chunk))
        if f.tell() < total:
            raise ConnectionError("the connection broke off")
