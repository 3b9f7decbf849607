"""The folder of a run: one owner, room for a checkpoint, and an earlier run that is deleted once the new one began."""

import contextlib
import shutil
from pathlib import Path

import torch

from formats import checkpoint
from system.errors import UserError
from system.lock import folder_lock
from tracking import runlog
from training import costs

ASIDE = ".replaced"  # holds the earlier run's files until the new run has written its first ones
DELETED = ".deleted"  # the same folder from then on


@contextlib.contextmanager
def own_folder(log_dir, rt):
    """Lock `log_dir` against other runs for the time of the block. Every rank must call it.

    Raises `UserError` if another run is in the folder, or if it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        rt.from_master(lambda: stack.enter_context(folder_lock(log_dir)))
        yield


def check_room(cfg, config):
    """Raise `UserError` if the disk has no room for a checkpoint of a model of shape `config`."""
    memory = costs.memory(config, cfg, 1, torch.float32)
    needed = memory.parameters + memory.optimizer
    free = shutil.disk_usage(nearest_folder(cfg.log_dir)).free
    if cfg.overwrite:
        found = [path.stat() for path in checkpoint_files(cfg.log_dir)]
        free += sum({file.st_ino: file.st_size for file in found}.values())  # two names of a file take its space once
    if free < needed:
        raise UserError(
            f"{cfg.log_dir}: a checkpoint takes {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB of its disk are"
            " free: free some space, or choose another --log_dir"
        )


def nearest_folder(path):
    """The deepest folder of `path` that exists."""
    return next(folder for folder in (Path(path), *Path(path).absolute().parents) if folder.is_dir())


@contextlib.contextmanager
def replaced_run(log_dir, rt):
    """Delete the run that `log_dir` holds if the block, which begins a new one, succeeds; else put it back as it was.

    A kill at any moment leaves one of the two whole, see `finish_replacement`. Every rank must call it.
    """
    rt.barrier()  # every rank has looked for a checkpoint
    rt.from_master(lambda: move_aside(log_dir))
    try:
        yield
    except BaseException:
        if rt.master:
            finish_replacement(log_dir)
        raise
    rt.from_master(lambda: delete_replaced(log_dir))


def move_aside(log_dir):
    aside = Path(log_dir) / ASIDE
    aside.mkdir(parents=True, exist_ok=True)
    for path in run_files(log_dir):
        path.rename(aside / path.name)


def finish_replacement(log_dir):
    """Bring a replacement that was interrupted to its end: put the earlier run back, or delete the rest of it."""
    aside = Path(log_dir) / ASIDE
    if aside.is_dir():  # the new run did not get further than its first files
        for path in run_files(log_dir):
            path.unlink()
        for path in aside.iterdir():
            path.rename(Path(log_dir) / path.name)
        aside.rmdir()
    shutil.rmtree(Path(log_dir) / DELETED, ignore_errors=True)


def delete_replaced(log_dir):
    deleted = Path(log_dir) / DELETED
    (Path(log_dir) / ASIDE).rename(deleted)  # from here on the new run is the one that counts
    shutil.rmtree(deleted, ignore_errors=True)


def run_files(log_dir):
    """The files that make a run: its checkpoints, log, record and plots."""
    paths = (runlog.path_of, runlog.config_path, runlog.plot_path, runlog.watch_path)
    others = [path_of(log_dir) for path_of in paths]
    return [*checkpoint_files(log_dir), *(path for path in others if path.exists())]


def checkpoint_files(log_dir):
    return [*checkpoint.list_checkpoints(log_dir).values(), *checkpoint.list_best(log_dir)]
