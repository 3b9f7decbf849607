"""Which tokens make step s: a computed order, so that nothing is stored, copied or lost.

A shard of n tokens holds ⌊(n-1)/T⌋ windows of T tokens and their targets, and a split is one row of windows over all
its shards. Epoch e visits them in a permutation given by (seed, e). Step s takes the next `total_batch_size / T`
windows of that endless row; ranks and micro-steps only divide them. So a step's tokens are the same for every world
size and every B, and the loader's whole state is two integers.

The alternative, reading each shard front to back as most loaders do, never shuffles, stalls when it opens the next
shard, and can only resume by skipping through what it has read.
"""

import numpy as np
import torch

from ops.cross_entropy import IGNORE
from system.errors import UserError

ROUNDS = 4  # of the Feistel network: enough for an order that shows no pattern (Luby & Rackoff 1988)


class Windows:
    """A split as one row of windows of T tokens."""

    def __init__(self, shards, T, split="train"):
        self.shards = [np.asarray(shard) for shard in shards]  # plain views: np.memmap's own slicing is slow
        self.T = T
        self.first = np.cumsum([0] + [(len(shard) - 1) // T for shard in self.shards])  # each shard's first window
        if len(self) == 0:
            longest = max(map(len, self.shards))
            raise UserError(
                f"the {split} split's longest shard has {longest:,} tokens, fewer than T + 1 = {T + 1:,}: lower T, or"
                " prepare more text"
            )

    def __len__(self):
        return int(self.first[-1])

    def batch(self, indices, B=None):
        """Windows by number → inputs and targets, int64 (B, T); rows beyond `indices` are filled up with -1 targets."""
        B = B or len(indices)
        x, y = np.zeros((B, self.T), np.int64), np.full((B, self.T), IGNORE, np.int64)
        of_shard = np.searchsorted(self.first, indices, side="right") - 1
        starts = (np.asarray(indices) - self.first[of_shard]) * self.T
        for row, (shard, start) in enumerate(zip(of_shard.tolist(), starts.tolist(), strict=True)):
            window = self.shards[shard][start : start + self.T + 1]
            x[row], y[row] = window[:-1], window[1:]
        return torch.from_numpy(x), torch.from_numpy(y)


class TrainLoader:
    """The endless, shuffled row of training windows, dealt out step by step."""

    def __init__(self, windows, B, total_batch_size, seed, rank=0, world_size=1):
        self.windows, self.B, self.seed = windows, B, seed
        self.rank, self.world_size = rank, world_size
        self.windows_per_step = total_batch_size // windows.T
        self.grad_accum_steps = self.windows_per_step // (B * world_size)
        self.position = 0  # windows dealt out so far

    def next_step(self):
        """This rank's micro-batches of the next step: `grad_accum_steps` pairs of int64 (B, T), made when taken."""
        indices = self.order(self.position, self.windows_per_step).reshape(-1, self.world_size, self.B)
        self.position += self.windows_per_step
        return (self.windows.batch(mine) for mine in indices[:, self.rank])

    def order(self, position, count):
        """Windows number `position` … `position + count - 1` of the endless row."""
        n, parts = len(self.windows), []
        while count:
            epoch, offset = divmod(position, n)
            take = min(count, n - offset)
            parts.append(permute(np.arange(offset, offset + take), n, (self.seed, epoch)))
            position, count = position + take, count - take
        return np.concatenate(parts)

    def state_dict(self):
        return {"seed": self.seed, "position": self.position}

    def load_state_dict(self, state):
        self.seed, self.position = state["seed"], state["position"]


def validation_batches(windows, B, val_tokens, rank=0, world_size=1):
    """This rank's share of the first `val_tokens` tokens: the same every time, whatever B and the world size.

    Yields int64 (B, T) pairs, as many on every rank; the last are filled up with ignored targets.
    """
    count = min(len(windows), max(1, val_tokens // windows.T))
    for start in range(0, count, B * world_size):
        mine = start + rank * B
        yield windows.batch(np.arange(min(mine, count), min(mine + B, count)), B)


def permute(indices, n, key):
    """Where a permutation of 0 … n-1, chosen by `key` (two integers), sends `indices`.

    A Feistel network permutes the next power of four; what falls outside 0 … n-1 is sent on until it falls inside
    (cycle-walking, Black & Rogaway 2002), which keeps it a permutation and takes fewer than four tries on average.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    values = np.array(indices, dtype=np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (scramble(right ^ round_key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= n
    return values.astype(np.int64)


def scramble(x):
    """A hash of 64-bit words in which every bit of x moves every bit of the result (the finalizer of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
