"""Time and private memory of a batch of 64×1024 tokens from 10⁸-token shards, compared with a common loader."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row
from system.memory import memory_status
from tokens.dataloader import TrainLoader, Windows
from tokens.shards import Shards, write_shard

B, T, SHARD_TOKENS = 64, 1024, 10**8


def rows():
    """The loader's row of `python bench.py data`: batches per second, including the switch to the next shard."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"bench_train_{i:06d}.npy" for i in (1, 2)]
        generator = np.random.default_rng(0)
        for path in paths:
            write_shard(path, generator.integers(0, 50257, SHARD_TOKENS, dtype=np.uint16))
        batches = our_batches(Shards(paths, [SHARD_TOKENS] * len(paths))), common_batches(paths)
        (ours, used), (common, common_used) = (time_batches(source, 3000) for source in batches)
    note = (
        f"{describe(ours)}, {used / 1e6:.0f} MB of private memory; the common loader: {describe(common)},"
        f" {common_used / 1e6:.0f} MB"
    )
    print(f"data/loader/64x1024: {note}", flush=True)
    rates = [len(seconds) / sum(seconds) for seconds in (ours, common)]
    return [Row("data/loader/64x1024", "batches/s", *rates, "read a shard whole, then slice it", None, note)]


def our_batches(shards):
    loader = TrainLoader(Windows(shards, T), B, total_batch_size=8 * B * T, seed=1337)
    while True:
        yield from ((x, y) for x, y, _ in loader.next_step())


def common_batches(paths):
    """Read each shard completely, convert it to int64 and slice it front to back, as most training scripts do."""
    while True:
        for path in paths:
            tokens = torch.tensor(np.load(path).astype(np.int64))
            for start in range(0, len(tokens) - B * T, B * T):
                piece = tokens[start : start + B * T + 1]
                yield piece[:-1].view(B, T), piece[1:].view(B, T)


def time_batches(batches, count):
    """(seconds of each of `count` batches, bytes of private memory that they added)."""
    seconds, before = [], private_memory()
    for _ in range(count):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    return seconds, private_memory() - before


def private_memory():
    """Bytes of private memory of this process; 0 where there is no /proc."""
    status = memory_status("RssAnon")
    return 0 if status is None else status


def describe(seconds):
    return f"median {statistics.median(seconds) * 1e3:.3f} ms, slowest {max(seconds) * 1e3:.1f} ms"
