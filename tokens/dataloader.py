"""The order of the training data: computed from (seed, epoch), so that the loader's state is two integers.

A shard of n tokens holds ⌊(n-1)/T⌋ windows of T tokens and their targets, and a split is one sequence of windows over
all its shards. Epoch e visits them in a permutation given by (seed, e). Step s takes the next `total_batch_size / T`
windows of that endless sequence; ranks and micro-steps only divide them. So the tokens of a step are the same for every
world size and every B.

The alternative, reading each shard front to back as most loaders do, does not shuffle, stalls when it opens the next
shard, and resumes only by skipping through what it has read.
"""

import numpy as np
import torch

from ops.cross_entropy import IGNORE
from system.errors import RankError, UserError
from tokens.shards import MAX_ID

ROUNDS = 4  # of the Feistel network: enough for a pseudorandom permutation (Luby & Rackoff 1988)


class Windows:
    """A split as one sequence of windows of T tokens."""

    def __init__(self, shards, T, split="train", max_id=MAX_ID):
        """`shards`: uint16 arrays, with no id above `max_id`. Raises `UserError` if none is longer than T; `split` is
        for its message."""
        self.shards = [np.asarray(shard) for shard in shards]  # plain views: slicing a np.memmap is slow
        self.names = [getattr(shard, "filename", "the data") for shard in shards]
        self.T, self.max_id = T, max_id
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
        """The inputs and targets, int64 (B, T), of windows given by number; B defaults to `len(indices)`.

        Rows beyond `indices` are padding: their targets are -1, which the loss ignores.
        """
        if B is None:
            B = len(indices)
        x, y = np.zeros((B, self.T), np.int64), np.full((B, self.T), IGNORE, np.int64)
        shard_of = np.searchsorted(self.first, indices, side="right") - 1
        starts = (np.asarray(indices) - self.first[shard_of]) * self.T
        for row, (shard, start) in enumerate(zip(shard_of.tolist(), starts.tolist(), strict=True)):
            window = self.shards[shard][start : start + self.T + 1]
            if window.max() > self.max_id:
                self.refuse_ids(shard, window)
            x[row], y[row] = window[:-1], window[1:]
        return torch.from_numpy(x), torch.from_numpy(y)

    def refuse_ids(self, shard, window):
        raise RankError(  # only the rank whose window it is meets it
            f"{self.names[shard]} holds token id {window.max()}, but the largest id in meta.json is {self.max_id}: the"
            " file has changed since it was written; make the folder again"
        )


class TrainLoader:
    """Yields the batches of each step from the endless, shuffled sequence of training windows."""

    def __init__(self, windows, B, total_batch_size, seed, rank=0, world_size=1):
        self.windows, self.B, self.seed = windows, B, seed
        self.rank, self.world_size = rank, world_size
        self.windows_per_step = total_batch_size // windows.T
        self.grad_accum_steps = self.windows_per_step // (B * world_size)
        self.position = 0  # windows taken so far, by all ranks

    def next_step(self):
        """This rank's micro-batches of the next step: a generator of `grad_accum_steps` pairs of int64 (B, T)."""
        indices = self.order(self.position, self.windows_per_step).reshape(-1, self.world_size, self.B)
        self.position += self.windows_per_step
        return (self.windows.batch(mine) for mine in indices[:, self.rank])

    def order(self, position, count):
        """The windows at `position` … `position + count - 1` of the endless sequence, int64 (count,)."""
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
    """Yield this rank's share of the first `val_tokens` tokens, the same ones for every B and world size.

    Yields int64 (B, T) pairs, the same number on every rank; the last ones are padded with targets of -1.
    """
    count = min(len(windows), max(1, val_tokens // windows.T))
    for start in range(0, count, B * world_size):
        mine = start + rank * B
        yield windows.batch(np.arange(min(mine, count), min(mine + B, count)), B)


def permute(indices, n, key):
    """The images of `indices` under a permutation of 0 … n-1 chosen by `key` (two integers), int64.

    A Feistel network permutes 0 … m-1, with m the next power of four. A value that lands at n or above is permuted
    again until it is below n (cycle-walking, Black & Rogaway 2002): the result is a permutation, and takes fewer than
    four passes on average.
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
    """A hash of 64-bit words in which every input bit affects every output bit (the finalizer of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
