"""Kill training at random moments and damage its files, many times: `python tests/torture_training.py --kills 100`.

Prints `N passed, N failed`. A kill passes if the files it leaves can be resumed from. A run that reaches its end passes
if it is bit-identical to an uninterrupted run. A damaged file passes if the damage is detected before it is used.
"""

import contextlib
import dataclasses
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

import torch
from helpers import TINY, as_flags, write_corpus
from tqdm import tqdm

from configurator import configure
from formats import checkpoint
from system.errors import UserError, command
from tokens.shards import open_data
from tracking.runlog import read_log

ROOT = Path(__file__).parent.parent
RUN = TINY | {"max_steps": 300, "checkpoint_interval": 10, "val_interval": 50, "keep_last": 3, "dropout": 0.1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Kill and damage training runs."""

    kills: int = 100
    """number of runs to kill by SIGKILL"""
    damages: int = 200
    """number of files to damage"""
    seed: int = 0
    """seed of the random moments and damages"""


def start(corpus, log_dir):
    flags = as_flags(RUN | {"data_dir": corpus, "log_dir": log_dir, "resume": True})
    command_line = [sys.executable, "train_gpt2.py", *flags]
    return subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


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
    with tempfile.TemporaryDirectory() as folder, tqdm(total=settings.kills + 1 + settings.damages) as bar:
        for function, count in ((kill, settings.kills), (damage_files, settings.damages)):
            for good in function(count, Path(folder), generator):
                passed, failed = passed + good, failed + (not good)
                bar.update()
                bar.set_postfix(failed=failed)
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
