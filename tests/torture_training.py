"""Kill training at random moments, damage its files, fill its disk: `python tests/torture_training.py --kills 100`.

Prints `N passed, N failed`. A kill passes if the files it leaves can be resumed from. A run that reaches its end passes
if it is bit-identical to an uninterrupted run. A damaged file passes if the damage is detected before it is used. Two
runs that start in one folder pass if one of them is refused and the other one ends as if alone. A signal while nothing
reads stdout passes if the run saves within 10 seconds. A disk that is full from one write on passes if the run ends
with code 0 or with one line and code 2, and can be resumed.
"""

import contextlib
import dataclasses
import errno
import io
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import unittest.mock
import warnings
from pathlib import Path
from typing import Annotated

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import torch
from helpers import TINY, as_flags, write_corpus
from tqdm import tqdm

import train_gpt2
from configurator import Range, configure
from formats import checkpoint
from system.errors import UserError, command
from tokens.shards import open_data
from tracking.runlog import read_log

ROOT = Path(__file__).parent.parent
RUN = TINY | {"max_steps": 300, "checkpoint_interval": 10, "val_interval": 50, "keep_last": 3, "dropout": 0.1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Kill, damage and disturb training runs."""

    kills: Annotated[int, Range(0)] = 100
    """number of runs to kill by SIGKILL"""
    damages: Annotated[int, Range(0)] = 200
    """number of files to damage"""
    rivals: Annotated[int, Range(0)] = 10
    """number of pairs of runs to start in one folder"""
    signals: Annotated[int, Range(0)] = 10
    """number of runs to stop by SIGTERM while nothing reads their output"""
    writes: Annotated[int, Range(0)] = 60
    """number of writes of a run from which on to fill the disk, one after the other"""
    seed: Annotated[int, Range(0)] = 0
    """seed of the random moments and damages"""


def start(corpus, log_dir, stdout=subprocess.DEVNULL, **settings):
    flags = as_flags(RUN | {"data_dir": corpus, "log_dir": log_dir, "resume": True} | settings)
    command_line = [sys.executable, "train_gpt2.py", *flags]
    return subprocess.Popen(command_line, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE)


def same_end(log_dir, expected):
    """Whether a finished run has the weights and the log, except times, of the run in the folder `expected`."""
    weights = checkpoint.load(checkpoint.path_of(log_dir, RUN["max_steps"]))["model"]
    times = ("dt_ms", "tok_per_sec", "mfu", "mem_gb")
    ours, theirs = (
        [line for line in (folder / "log.txt").read_text().splitlines() if line.split()[1] not in times]
        for folder in (log_dir, expected)
    )
    expected_weights = checkpoint.load(checkpoint.path_of(expected, RUN["max_steps"]))["model"]
    return ours == theirs and all(torch.equal(weights[name], w) for name, w in expected_weights.items())


def kill(kills, folder, generator):
    """Kill `kills` runs. Yields whether each kill, and each run that reached its end, passed."""
    corpus, uninterrupted, log_dir = write_corpus(folder / "data"), folder / "uninterrupted", folder / "log"
    began = time.monotonic()
    if start(corpus, uninterrupted).wait():
        raise UserError("the uninterrupted run failed: see python train_gpt2.py config/debug.py")
    duration = time.monotonic() - began
    for _ in range(kills):
        process = start(corpus, log_dir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.1 * duration, duration))
        ended = process.poll()
        process.kill()
        process.wait()
        if ended is None:
            with contextlib.redirect_stdout(io.StringIO()):
                yield not checkpoint.list_checkpoints(log_dir) or checkpoint.newest_good(log_dir, print) is not None
        else:
            yield ended == 0 and same_end(log_dir, uninterrupted)
            shutil.rmtree(log_dir)
    yield start(corpus, log_dir).wait() == 0 and same_end(log_dir, uninterrupted)


def start_rivals(pairs, folder, generator):
    """Start two runs in one folder, `pairs` times. Yields whether one was refused and the other one undisturbed."""
    log_dir = folder / "rivals"
    for _ in range(pairs):
        rivals = [start(folder / "data", log_dir)]
        time.sleep(generator.uniform(0, 4))
        rivals.append(start(folder / "data", log_dir))
        errors = [rival.communicate()[1] for rival in rivals]
        codes = [rival.returncode for rival in rivals]
        refused = sorted(codes) == [0, 2] and b"in use by process" in errors[codes.index(2)]
        ended_before = codes == [0, 0]  # the first had ended when the second came: that one resumes its end
        yield (refused or ended_before) and same_end(log_dir, folder / "uninterrupted")
        shutil.rmtree(log_dir)


def signal_blocked(count, folder, generator):
    """Stop `count` runs by SIGTERM while their stdout is full. Yields whether each saved and exited in time."""
    for _ in range(count):
        log_dir = folder / "blocked"
        process = start(folder / "data", log_dir, subprocess.PIPE, max_steps=10**6, checkpoint_interval=0)
        while not (log_dir / "log.txt").exists():
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 10))
        process.terminate()
        try:
            code = process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            code = None
        log = read_log(log_dir)
        yield code == 0 and checkpoint.newest_good(log_dir, print) == checkpoint.path_of(
            log_dir, len(log["train"].steps)
        )
        shutil.rmtree(log_dir)


class FullDisk:
    """Stands in for `open`: from write number `first` on, every write to a file raises "No space left on device"."""

    def __init__(self, first):
        self.left, self.open = first, open

    def __call__(self, *args, **kwargs):
        file = self.open(*args, **kwargs)
        if file.writable():
            write = file.write
            file = unittest.mock.Mock(wraps=file, write=lambda data: self.write(write, data))
            file.__enter__ = lambda self: self
            file.__exit__ = lambda self, *error: self.close()
        return file

    def write(self, write, data):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(data)


def fill_disk(writes, folder, generator):
    """Let the disk of a short run be full from each of its first `writes` writes on. Yields whether it went well."""
    settings = TINY | {"data_dir": folder / "data", "checkpoint_interval": 2, "keep_last": 2, "resume": True}
    for first in range(writes):
        log_dir = folder / "full"
        flags = as_flags(settings | {"log_dir": log_dir})
        with unittest.mock.patch("builtins.open", FullDisk(first)):
            code, errors = run_in_process(flags)
        good = code == 0 or (code == 2 and errors.count("error:") == 1)
        good = good and "Traceback" not in errors
        code, _ = run_in_process(flags)
        yield good and code == 0 and checkpoint.newest_good(log_dir, print) == checkpoint.path_of(log_dir, 5)
        shutil.rmtree(log_dir)


def run_in_process(flags):
    """(exit code, what was printed on stderr) of train_gpt2.py; None for an exception that left it."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            train_gpt2.main(flags)
            code = 0
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = None
    return code, errors.getvalue()


def damage(content, generator):
    """Return `content` truncated, or with one bit flipped, at a random place."""
    if generator.random() < 0.5:
        return content[: generator.randrange(len(content))]
    damaged = bytearray(content)
    damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def damage_files(damages, folder, generator):
    """Damage files of a run in turn: a checkpoint, a shard's header, a log. Yields whether each damage was detected."""
    run = folder / "uninterrupted"
    newest, log = checkpoint.path_of(run, RUN["max_steps"]), run / "log.txt"
    shard = next((folder / "data").glob("*train*"))
    for number in range(damages):
        path = (newest, shard, log)[number % 3]
        content = path.read_bytes()
        if path == shard:  # only `prepare.py --inspect` verifies its content
            damaged = damage(content[:128], generator) + content[128:]
        else:
            damaged = damage(content, generator)
        path.write_bytes(damaged)
        try:
            yield is_detected(path, run, folder / "data", same=damaged == content)
        finally:
            path.write_bytes(content)


def is_detected(path, run, data_dir, same):
    """Whether reading the damaged `path` is refused or harmless; `same`: the damage left the content unchanged."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        if path.name == "log.txt":
            return "train" in read_log(run) or path.stat().st_size < 1000
        if path.suffix == ".pt":
            return checkpoint.newest_good(run, print) != path
        try:
            data = open_data(data_dir, "python prepare.py")
        except UserError:
            return True
        # The data can be opened after a flip in the padding of the header, which holds no information.
        return same or sum(data.tokens(split) for split in ("train", "val")) > 0


@command
def main(argv=None):
    settings = configure(Settings, argv)
    generator = random.Random(settings.seed)
    passed = failed = 0
    work = [(kill, settings.kills), (damage_files, settings.damages), (start_rivals, settings.rivals)]
    work += [(signal_blocked, settings.signals), (fill_disk, settings.writes)]
    with tempfile.TemporaryDirectory() as folder, tqdm(total=1 + sum(count for _, count in work)) as bar:
        for function, count in work:
            for good in function(count, Path(folder), generator):
                passed, failed = passed + good, failed + (not good)
                bar.update()
                bar.set_postfix(failed=failed)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
