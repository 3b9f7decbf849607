"""A run's whole state on disk, never half there, and never trusted without its checksum.

A checkpoint is a `torch.save` file of tensors and plain Python values, so `torch.load(path, weights_only=True)` reads
all of it, here and anywhere. Its SHA-256 stands in the comment at the end of the zip archive that such a file is:
`torch.load` alone doesn't notice a flipped byte, and a second file beside it could be lost or belong to another.
"""

import contextlib
import hashlib
import os
import re
import struct
from pathlib import Path

import torch

from system.errors import UserError
from system.files import AtomicFile

FORMAT_VERSION = 1
NAME = re.compile(r"model_(\d+)\.pt")
DIGEST_LENGTH = 64  # SHA-256 in hexadecimal


def save(path, state):
    """Write `state` (a dict of tensors and plain values) so that `path` only ever holds a whole checkpoint.

    Raises `OSError` where it can't be written: a full disk, say. What stood at `path` is then still there.
    """
    with AtomicFile(path) as f, disk_errors():
        torch.save({"format_version": FORMAT_VERSION} | state, f)
        f.flush()
        f.seek(0)
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        f.seek(-2, os.SEEK_END)  # the archive ends with the length of its comment, so far 0
        f.write(struct.pack("<H", DIGEST_LENGTH) + digest.encode())


@contextlib.contextmanager
def disk_errors():
    """torch's zip writer turns an `OSError` of the file beneath it into a `RuntimeError`; turn it back."""
    try:
        yield
    except RuntimeError as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OSError):
            raise cause from None
        raise


def load(path, mmap=False):
    """The state in `path`, on the CPU, after its checksum. Raises `UserError` if it is absent, damaged or foreign.

    Never unpickles anything that could run code. With `mmap`, a tensor is read when it is looked at.
    """
    verify(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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


def prune(log_dir, keep_last, best_step):
    """Delete all but the newest `keep_last` checkpoints (0: none is deleted) and the best."""
    found = list_checkpoints(log_dir)
    for step in list(found)[: -keep_last or len(found)] if keep_last else ():
        if step != best_step:
            found[step].unlink(missing_ok=True)


def newest_good(log_dir, tell):
    """The newest checkpoint of a run that is whole, or None where there is none; `tell` is told of each that isn't.

    Raises `UserError` where there are some, but none is whole: starting anew must not be decided by damage.
    """
    found = list_checkpoints(log_dir)
    for path in reversed(found.values()):
        try:
            verify(path)
            return path
        except UserError as error:
            tell(str(error))
    if found:
        raise UserError(f"no checkpoint in {log_dir} is whole: move them away, or start anew with --overwrite")
    return None


def path_of(log_dir, step):
    return Path(log_dir) / f"model_{step:05d}.pt"


def list_checkpoints(log_dir):
    """The checkpoints of a run, {step: path}, oldest first."""
    if not os.path.isdir(log_dir):
        return {}
    found = ((NAME.fullmatch(path.name), path) for path in Path(log_dir).iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def newest_checkpoint(folder="log"):
    """The path of the checkpoint under `folder`, at any depth, that was written last. Raises `UserError` if none."""
    subfolders = [path for path, _, _ in os.walk(folder)]
    paths = [path for subfolder in subfolders for path in list_checkpoints(subfolder).values()]
    if not paths:
        raise UserError(
            f"no checkpoint under {folder}/: train a model (python train_gpt2.py config/quickstart.py), name a"
            " checkpoint or a folder (--model PATH), or use OpenAI's (--model gpt2)"
        )
    return str(max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)))
