"""The checkpoints of this repository: the whole state of a run in one file, written atomically, with a checksum.

A checkpoint is a `torch.save` file of tensors and plain Python values, so `torch.load(path, weights_only=True)` reads
all of it. The file is a zip archive, and its SHA-256 is stored as the archive's comment: `torch.load` does not notice a
flipped byte, and a checksum in a second file could be lost or belong to another checkpoint.

    model_00250.pt      after 250 updates; a run keeps its newest
    model_best.pt       after the updates that gave the lowest validation loss; often a second name of the same file
"""

import contextlib
import hashlib
import os
import re
import struct
import time
from pathlib import Path

import torch

from formats.model_file import ModelFile, check_shape_fits, checked_shape, without_padding
from formats.torch_file import safe_load
from system.boundary import require_fields, require_regular_file
from system.errors import UserError
from system.files import AtomicFile
from system.words import duration

FORMAT_VERSION = 1
NAME = re.compile(r"model_(\d+)\.pt")
BEST = "model_best.pt"
DIGEST_LENGTH = 64  # SHA-256 in hexadecimal
END_START, END_BYTES = b"PK\5\6", 22  # the last record of a zip archive; its last two bytes are the comment's length


def matches(path, start):
    """Whether `path` is a folder with checkpoints, or a zip archive that ends with a checksum."""
    if os.path.isdir(path):
        return newest(path) is not None
    with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - DIGEST_LENGTH - END_BYTES))
        end = f.read(END_BYTES)
    return end.startswith(END_START) and end.endswith(struct.pack("<H", DIGEST_LENGTH))


def read(path):
    """The `ModelFile` of a checkpoint, or of the newest one in a folder.

    The checksum of the whole file is verified when the tensors are read; reading only the shape skips this.
    """
    if os.path.isdir(path):
        path = str(newest(path))
    try:
        state = check_format(safe_load(path, mmap=True), path)
        require_fields(state, path, model=dict, model_config=dict, tokenizer=(str, type(None)), step=int)
        shape = checked_shape(state["model_config"], path)
        check_shape_fits(shape, os.path.getsize(path), path)
    except Exception:  # not verified yet, so a damaged file can fail in any way; the checksum gives the reason
        verify(path)
        raise

    def load_tensors():
        tensors = load(path, mmap=True)["model"]  # the optimizer's state, two thirds of the file, is not read
        return without_padding(tensors, shape["vocab_size"])

    step = state["step"]
    source, chat, log_dir = f"{path} (step {step})", state.get("chat") is True, os.path.dirname(path) or "."
    return ModelFile(shape, state["tokenizer"], source, load_tensors, chat, log_dir, step)


def save(path, state):
    """Write `state`, a dict of tensors and plain values, atomically: `path` never holds an incomplete checkpoint.

    Raises `OSError` if it cannot be written, on a full disk for example; a previous file at `path` is then unchanged.
    """
    with AtomicFile(path) as f, disk_errors():
        torch.save({"format_version": FORMAT_VERSION} | state, f)
        f.flush()
        f.seek(0)
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        f.seek(-2, os.SEEK_END)  # the last field of the archive is the length of its comment, which is 0 so far
        f.write(struct.pack("<H", DIGEST_LENGTH) + digest.encode())


@contextlib.contextmanager
def disk_errors():
    """Raise the file's `OSError`, or a Ctrl-C, again: torch's zip writer turns them into a `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        cause = error
        while cause is not None and not isinstance(cause, (OSError, KeyboardInterrupt)):
            cause = cause.__cause__ or cause.__context__  # one `RuntimeError` for each level of the writer
        raise cause or error from None


def load(path, mmap=False):
    """Verify the checksum of `path` and load its state onto the CPU. With `mmap`, tensors are read when they are used.

    Never executes code. Raises `UserError` if the file is missing, damaged or not a checkpoint of this repository.
    """
    verify(path)
    return check_format(safe_load(path, mmap), path)


def check_format(state, path):
    """Return `state`. Raises `UserError` unless it is of the format version that this code reads."""
    version = state.get("format_version") if isinstance(state, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, this code reads {FORMAT_VERSION}")
    return state


def verify(path):
    """Raise `UserError` unless `path` ends with the checksum of its content."""
    require_regular_file(path, "a checkpoint")
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
    """SHA-256 of the archive before `save` added the comment: `size` bytes, of which the last two were 0."""
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


def prune(log_dir, keep_last, good_steps):
    """Delete all numbered checkpoints but the newest `keep_last`. With `keep_last` 0, delete none.

    `good_steps`, a set, holds the steps whose checkpoints the caller has written or verified; the newest of them was
    just written. Others are verified before they count. Later checkpoints than that one are left: a run only goes back
    behind them if they are damaged, and will overwrite them.
    """
    if keep_last == 0:
        return
    kept = 0
    for step, path in reversed(list_checkpoints(log_dir).items()):
        if step > max(good_steps):
            continue
        if kept == keep_last:
            with contextlib.suppress(OSError):  # what can't be deleted stays
                path.unlink()
        elif step in good_steps or is_good(path):
            good_steps.add(step)
            kept += 1


def is_good(path):
    """Whether `path` is an undamaged checkpoint."""
    try:
        verify(path)
    except UserError:
        return False
    return True


def newest_good(log_dir, warn):
    """The path of a run's newest undamaged checkpoint, or None if it has no checkpoints.

    The best one comes after all numbered ones. `warn` receives the reason for each damaged file. Raises `UserError` if
    all are damaged: whether to train from the beginning is the user's decision.
    """
    found = [*reversed(list_checkpoints(log_dir).values()), *list_best(log_dir)]
    for path in found:
        try:
            verify(path)
            return path
        except UserError as error:
            warn(str(error))
    if found:
        raise UserError(f"every checkpoint in {log_dir} is damaged: move them away, or start over with --overwrite")
    return None


def path_of(log_dir, step):
    return Path(log_dir) / f"model_{step:05d}.pt"


def best_path(log_dir):
    return Path(log_dir) / BEST


def list_best(log_dir):
    """[the path of a run's best checkpoint], or [] if there is none."""
    path = best_path(log_dir)
    return [path] if path.is_file() else []


def numbered_or_best(log_dir):
    """The paths of a run's numbered checkpoints by increasing step, or of its best one where there are none."""
    numbered = list_checkpoints(log_dir)
    return list(numbered.values()) if numbered else list_best(log_dir)


def newest(log_dir):
    """The path of a run's newest numbered checkpoint, else of its best one; None if it has none. Verifies nothing."""
    paths = numbered_or_best(log_dir)
    return paths[-1] if paths else None


def best_of(name):
    """The path of the best checkpoint of the run in the folder `name`. Raises `UserError` if there is none."""
    path = Path(name)
    if path.name != BEST:
        if not path.is_dir():
            raise UserError(f"--best takes the best checkpoint of a run's folder, and {name} is no folder")
        path = best_path(path)
    if not path.is_file():
        raise UserError(f"{path.parent} holds no {BEST}, which a run writes at its first validation after step 0")
    return str(path)


def list_checkpoints(log_dir):
    """The numbered checkpoints of a run, {step: path}, by increasing step. Empty if `log_dir` is not a folder.

    Only files count, or links to files: a folder or a pipe of such a name is no checkpoint.
    """
    if not os.path.isdir(log_dir):
        return {}
    found = ((NAME.fullmatch(path.name), path) for path in Path(log_dir).iterdir())
    return dict(sorted((int(match[1]), path) for match, path in found if match and path.is_file()))


def newest_checkpoint(folder="log"):
    """The path of the checkpoint under `folder`, at any depth, that was written last. Raises `UserError` if none."""
    subfolders = [path for path, _, _ in os.walk(folder)]
    paths = [path for subfolder in subfolders for path in numbered_or_best(subfolder)]
    if not paths:
        raise UserError(
            f"no checkpoint under {folder}/: train a model (python train_gpt2.py config/quickstart.py), name a"
            " checkpoint or a folder (--model PATH), or use OpenAI's (--model gpt2)"
        )
    return str(max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def describe_age(path):
    """`log/mine/model_00250.pt, written 12 min ago`."""
    return f"{path}, written {duration(max(0.0, time.time() - os.path.getmtime(path)))} ago"
