"""A batch of 64×1024 tokens from 10⁸-token shards: its time and private memory, beside the usual loader's."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import Row, memory_status
from tokens.dataloader import TrainLoader, Windows
from tokens.shards import open_shard, write_shard

B, T, SHARD_TOKENS = 64, 1024, 10**8


def rows():
    """The loader's row of `python bench.py data`: batches a second, shards' ends included."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"bench_train_{i:06d}.npy" for i in (1, 2)]
        generator = np.random.default_rng(0)
        for path in paths:
            write_shard(path, generator.integers(0, 50257, SHARD_TOKENS, dtype=np.uint16))
        batches = our_batches([open_shard(path) for path in paths]), usual_batches(paths)
        (ours, used), (usual, usual_used) = (time_batches(dealer, 3000) for dealer in batches)
    note = (
        f"{describe(ours)}, {used / 1e6:.0f} MB of private memory; the usual loader: {describe(usual)},"
        f" {usual_used / 1e6:.0f} MB"
    )
    print(f"data/loader/64x1024: {note}", flush=True)
    rates = [len(seconds) / sum(seconds) for seconds in (ours, usual)]
    return [Row("data/loader/64x1024", "batches/s", *rates, "read a shard whole, then slice it", None, note)]


def our_batches(shards):
    loader = TrainLoader(Windows(shards, T), B, total_batch_size=8 * B * T, seed=1337)
    while True:
        yield from loader.next_step()


def usual_batches(paths):
    """Each shard read whole, widened to int64 and sliced front to back, as the classic training scripts do."""
    while True:
        for path in paths:
            tokens = torch.tensor(np.load(path).astype(np.int64))
            for start in range(0, len(tokens) - B * T, B * T):
                piece = tokens[start : start + B * T + 1]
                yield piece[:-1].view(B, T), piece[1:].view(B, T)


def time_batches(batches, count):
    """(seconds of each of `count` batches, those at a shard's end included; bytes of private memory that they took)."""
    seconds, before = [], (memory_status("RssAnon") or 0)
    for _ in range(count):
        start = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - start)
    return seconds, (memory_status("RssAnon") or 0) - before


def describe(seconds):
    return f"median {statistics.median(seconds) * 1e3:.3f} ms, slowest {max(seconds) * 1e3:.1f} ms"
