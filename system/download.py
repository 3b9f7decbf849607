"""A file from the net: fetched once, continued where it broke off, never trusted without its checksum."""

import hashlib
import os
import urllib.error
import urllib.request

from tqdm import tqdm

from system.errors import UserError


def download(url, path, sha256, otherwise):
    """Fetch `url` to `path`, a `Path`. A broken-off attempt leaves `path`.part, and the next one goes on from there.

    Raises `UserError` where the net or the disk fails, naming the way out that `otherwise` tells, or where what came
    isn't the file of that `sha256`.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch_rest(url, part)
    except (OSError, ValueError) as error:  # urllib's own kinds are OSErrors
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url} could not be downloaded ({reason}): run it again to go on where it broke off, or fetch it elsewhere"
            f" and put it at {path}; {otherwise}"
        ) from error
    with open(part, "rb") as f:
        found = hashlib.file_digest(f, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise UserError(f"{url}: what came has another checksum than expected and was deleted; {otherwise}")
    os.replace(part, path)


def fetch_rest(url, part):
    """Append to `part` what it lacks, or begin anew where the server can't continue."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=20)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # it lacks nothing
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as f:
        have = f.tell()
        total = have + int(response.headers.get("Content-Length", 0))
        with tqdm(total=total or None, initial=have, unit="B", unit_scale=True, desc=part.stem) as bar:
            while chunk := response.read(1 << 16):
                f.write(chunk)
                bar.update(len(chunk))
        if f.tell() < total:
            raise ConnectionError("the connection broke off")
