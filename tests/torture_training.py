"""Kill training at random moments and damage its files, many times: `python tests/torture_training.py --kills 100`.

Prints `N passed, N failed`. A kill passes if what it leaves can be resumed from; a run that reaches its end passes if
it is, bit for bit, the run that nothing happened to; a damage passes if it is noticed before anything is used.
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
    """runs killed by SIGKILL"""
    damages: int = 200
    """files damaged"""
    seed: int = 0
    """of the moments and the damages"""


def start(corpus, log_dir):
    flags = as_flags(RUN | {"data_dir": corpus, "log_dir": log_dir, "resume": True})
    command_line = [sys.executable, "train_gpt2.py", *flags]
    return subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def same_end(log_dir, expected):
    """Whether a finished run's weights and log are the expected ones."""
    weights = checkpoint.load(checkpoint.path_of(log_dir, RUN["max_steps"]))["model"]
    times = ("dt_ms", "tok_per_sec", "mfu")
    ours, theirs = (
        [line for line in (folder / "log.txt").read_text().splitlines() if line.split()[1] not in times]
        for folder in (log_dir, expected)
    )
    expected_weights = checkpoint.load(checkpoint.path_of(expected, RUN["max_steps"]))["model"]
    return ours == theirs and all(torch.equal(weights[name], w) for name, w in expected_weights.items())


def kill(kills, folder, generator):
    """Yield whether each kill, and each run that was killed and reached its end, passed."""
    corpus, undisturbed, log_dir = write_corpus(folder / "data"), folder / "undisturbed", folder / "log"
    began = time.monotonic()
    if start(corpus, undisturbed).wait():
        raise UserError("the undisturbed run failed: see python train_gpt2.py config/debug.py")
    whole = time.monotonic() - began
    for _ in range(kills):
        process = start(corpus, log_dir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(generator.uniform(0.1 * whole, whole))
        ended = process.poll()
        process.kill()
        process.wait()
        if ended is None:
            with contextlib.redirect_stdout(io.StringIO()):
                yield not checkpoint.list_checkpoints(log_dir) or checkpoint.newest_good(log_dir, print) is not None
        else:
            yield ended == 0 and same_end(log_dir, undisturbed)
            shutil.rmtree(log_dir)
    yield start(corpus, log_dir).wait() == 0 and same_end(log_dir, undisturbed)


def damage(content, generator):
    """A flipped bit or a truncation."""
    if generator.random() < 0.5:
        return content[: generator.randrange(len(content))]
    damaged = bytearray(content)
    damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def damage_files(damages, folder, generator):
    """Yield whether each damage was noticed: any of a checkpoint, of a shard its header, of a log its lines."""
    run = folder / "undisturbed"
    newest, log = checkpoint.path_of(run, RUN["max_steps"]), run / "log.txt"
    shard = next((folder / "data").glob("*train*"))
    for number in range(damages):
        path = (newest, shard, log)[number % 3]
        content = path.read_bytes()
        if path == shard:  # its content is `prepare.py --inspect`'s to check
            damaged = damage(content[:128], generator) + content[128:]
        else:
            damaged = damage(content, generator)
        path.write_bytes(damaged)
        try:
            yield noticed(path, run, folder / "data", same=damaged == content)
        finally:
            path.write_bytes(content)


def noticed(path, run, data_dir, same):
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
        return same or sum(data.tokens(split) for split in ("train", "val")) > 0  # a flip in the header's padding


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
