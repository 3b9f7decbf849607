"""A tiny corpus, tiny settings, and the scripts run as a user runs them."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import torch
from fork_server import ForkServer

from tokens.shards import shard_name, write_masked_shard, write_meta, write_shard

ROOT = Path(__file__).parent.parent
TEXT = "".join(f"{a} plus {b} makes {a + b}.\n" for a in range(40) for b in range(40))
TINY = {
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 32,
    "block_size": 32,
    "T": 32,
    "B": 4,
    "total_batch_size": 512,
    "max_steps": 5,
    "warmup_steps": 2,
    "max_lr": 1e-3,
    "min_lr": 1e-4,
    "val_interval": 0,
    "val_tokens": 1024,
    "sample_interval": 0,
    "hellaswag_interval": 0,
    "checkpoint_interval": 0,
    "device": "cpu",
    "dtype": "float32",
}

MEASURED = ("dt_ms", "tok_per_sec", "mfu", "mem_gb")  # streams of the log that differ between equal runs


def write_corpus(folder, text=TEXT, shards=2, val=2000, masked=False):
    """Byte shards of `text`: the last `val` characters are validation, the rest is split over `shards`.

    If `masked`, the loss counts a share of the tokens that is different in each window, as in conversations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
    parts = [data[-val:], *np.array_split(data[:-val], shards)]
    entries = []
    for i, part in enumerate(parts):
        path, tokens = folder / shard_name("tiny", i, ".npy"), np.concatenate([[256], part]).astype(np.uint16)
        entries.append(
            write_masked_shard(path, tokens, uneven_mask(len(tokens))) if masked else write_shard(path, tokens)
        )
    chat = {"chat": {"T": TINY["T"], "tokens": 0, "counted": 0, "cut": 0}} if masked else {}
    write_meta(folder, {"tokenizer": "byte", "source": "a test", **chat, "shards": entries})
    return folder


def uneven_mask(n):
    """Which of n tokens count, bool (n,): in each window of TINY's T between 1 and T - 1 of them, at random."""
    generator, T = np.random.default_rng(0), TINY["T"]
    counts = np.repeat(generator.integers(1, T, n // T + 1), T)[:n]
    return generator.permuted(np.arange(n // T * T + T).reshape(-1, T) % T, axis=1).ravel()[:n] < counts


def write_hellaswag(path, examples=7):
    """A file in HellaSwag's own fields, about sums."""
    with open(path, "w", encoding="utf-8") as f:
        for i in range(examples):
            record = {"ind": i, "ctx": f"{i} plus {i}", "label": i % 4}
            f.write(json.dumps(record | {"endings": [f"makes {i + j}." for j in range(4)]}) + "\n")
    return path


@contextlib.contextmanager
def file_size_limit(size):
    """As on a full disk: this process cannot write files of more than `size` bytes."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def as_flags(settings):
    return [f"--{name}={value}" for name, value in settings.items()]


@functools.cache
def fork_server():
    """The server of this process, which starts with the first script."""
    return ForkServer.in_new_interpreter()


def can_fork(environment):
    """Whether a process of `fork_server` is like one that begins with a new interpreter."""
    if sys.platform != "linux" or torch.cuda.is_available():
        return False
    ignored = dict.fromkeys(("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR"))  # which pytest and torch set themselves
    return environment | ignored == fork_server().environment | ignored


def start_python(*words, env=None, cwd=ROOT, fresh=False, **options):
    """Start `python WORDS`; returns a process like `subprocess.Popen`, in text mode.

    It is forked from a process that has torch imported already, see `fork_server.py`. It begins with a new interpreter
    if `fresh`, for tests of what happens before or while libraries are imported, and where the environment is not the
    one of the server, which the libraries have read.
    """
    command, environment = [sys.executable, *map(str, words)], {**os.environ, **(env or {})}
    if fresh or not can_fork(environment):
        if os.name == "posix":
            options = {"preexec_fn": restore_ctrl_c} | options  # as the server does
        return subprocess.Popen(command, cwd=cwd, env=environment, text=True, **options)
    return fork_server().start(command, cwd=cwd, env=environment, **options)


def run_python(*words, timeout=120, stdin=None, **options):
    """Run `start_python` to the end; returns the finished process with stdout and stderr as text."""
    pipes = {"stdin": None if stdin is None else PIPE, "stdout": PIPE, "stderr": PIPE}
    process = start_python(*words, **pipes, **options)
    try:
        output = process.communicate(stdin, timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def run_script(script, *args, **options):
    """Run a script as a user would, by `run_python`, whose options are env, cwd, stdin, timeout in seconds, fresh."""
    return run_python(ROOT / script, *args, **options)


def torchrun(ranks, script, *args, timeout=180, flags=(), **options):
    """Run a script under a real torchrun with `ranks` gloo processes of one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *flags]
    return run_python(*launcher, ROOT / script, *args, timeout=timeout, **options)


def restore_ctrl_c():
    """Undo the inherited setting of background jobs, which ignore SIGINT; for a process that a test starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
