"""A run's whole state on disk, never half there, and never trusted without its checksum.

A checkpoint is a `torch.save` file of tensors and plain Python values, so `torch.load(path, weights_only=True)` reads
all of it, here and anywhere. Its SHA-256 stands in the comment at the end of the zip archive that such a file is:
`torch.load` alone doesn't notice a flipped byte, and a second file beside it could be lost or belong to another.
"""

import hashlib
import os
import re
import struct
from pathlib import Path

import torch

from errors import UserError
from files import AtomicFile

FORMAT_VERSION = 1
NAME = re.compile(r"model_(\d+)\.pt")
DIGEST_LENGTH = 64  # SHA-256 in hexadecimal


def save(path, state):
    """Write `state` (a dict of tensors and plain values) so that `path` only ever holds a whole checkpoint."""
    with AtomicFile(path) as f:
        torch.save({"format_version": FORMAT_VERSION} | state, f)
        f.flush()
        f.seek(0)
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        f.seek(-2, os.SEEK_END)  # the archive ends with the length of its comment, so far 0
        f.write(struct.pack("<H", DIGEST_LENGTH) + digest.encode())


def load(path, map_location="cpu"):
    """The state in `path`, after its checksum. Raises `UserError` for one that is absent, damaged or foreign.

    Never unpickles anything that could run code.
    """
    verify(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a pickle that asks for more than tensors and plain values
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} was refused: it holds more than tensors and plain values ({reason})") from error
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, this code reads {FORMAT_VERSION}")
    return state


def verify(path):
    """Raise `UserError` unless `path` is a checkpoint whose bytes are those that were written."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            f.seek(max(0, size - DIGEST_LENGTH))
            expected = f.read().decode("ascii", errors="replace")
            f.seek(0)
            found = digest_without_comment(f, size - DIGEST_LENGTH)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if found != expected:
        raise UserError(f"{path} is damaged: its checksum doesn't match its content; use an earlier checkpoint")


def digest_without_comment(f, size):
    """SHA-256 of the archive as it was before its comment: `size` bytes, of which the last two were 0."""
    digest, left = hashlib.sha256(), max(0, size - 2)
    while left:
        chunk = f.read(min(left, 1 << 20))
        if not chunk:
            break
        digest.update(chunk)
        left -= len(chunk)
    digest.update(b"\0\0")
    length = f.read(2)
    return digest.hexdigest() if length == struct.pack("<H", DIGEST_LENGTH) else "no checksum"


def path_of(log_dir, step):
    return Path(log_dir) / f"model_{step:05d}.pt"


def list_checkpoints(log_dir):
    """The checkpoints of a run, {step: path}, oldest first."""
    if not os.path.isdir(log_dir):
        return {}
    found = ((NAME.fullmatch(path.name), path) for path in Path(log_dir).iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))
