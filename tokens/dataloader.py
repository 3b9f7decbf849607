"""The order of the training data: computed from (seed, epoch), so that the loader's state is three integers.

A shard of n tokens holds ⌊(n-1)/T⌋ windows of T tokens and their targets, and a split is one sequence of windows over
all its shards. Epoch e visits them in a permutation given by (seed, e). Step s takes the next `total_batch_size / T`
windows of that endless sequence; ranks and micro-steps only divide them. So the tokens of a step are the same for every
world size and every B.

From the second epoch on, the windows of a shard begin at an offset given by (seed, e), so that a token meets other
neighbours. A shard of two windows or more then gives one fewer, which leaves more than T offsets to choose from. The
number of windows is the same for every offset, so the epoch of a position follows by one division.

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

    def __init__(self, shards, T, split="train", max_id=MAX_ID, counted=None):
        """`shards`: `Shards` with no id above `max_id`. Raises `UserError` if none is longer than T; `split` is for its
        message. `counted`: which of all tokens count as targets, bool (n,), or None if all do. Then windows hold whole
        conversations, and begin at the same tokens in each epoch.
        """
        self.shards, self.T, self.max_id, self.counted = shards, T, max_id, counted
        lengths = shards.lengths
        counts = (lengths - 1) // T
        if counted is None:
            shifted = np.where(counts > 1, counts - 1, counts)
            self.room = lengths - 1 - shifted * T  # the largest offset in each shard
        else:
            shifted, self.room = counts, np.zeros_like(lengths)
        self.begin = cumulative(lengths)  # each shard's first token
        self.first, self.first_shifted = cumulative(counts), cumulative(shifted)  # each shard's first window
        if len(self) == 0:
            raise UserError(
                f"the {split} split's longest shard has {lengths.max():,} tokens, fewer than T + 1 = {T + 1:,}: lower"
                " T, or prepare more text"
            )

    def __len__(self):
        return int(self.first[-1])

    def count_shifted(self):
        """The number of windows that begin at offsets, whatever the offsets are."""
        return int(self.first_shifted[-1])

    def starts(self, indices, key=None):
        """The first tokens of windows given by number: their places in the sequence of all tokens, int64.

        With `key`, two integers, they are the windows that begin at the offsets which it gives.
        """
        first = self.first if key is None else self.first_shifted
        shard = shard_of(first, indices)
        starts = self.begin[shard] + (indices - first[shard]) * self.T
        return starts if key is None else starts + self.offsets(shard, key)

    def offsets(self, shard, key):
        """Where the windows of each of these shards begin, chosen by `key` (two integers) from 0 … `room`, int64."""
        (word,) = np.random.SeedSequence(key, spawn_key=(1,)).generate_state(1, np.uint64)
        values = scramble(word ^ shard.astype(np.uint64))
        return (values % (self.room[shard] + 1).astype(np.uint64)).astype(np.int64)

    def batch(self, indices, B=None):
        """The inputs and targets, int64 (B, T), of windows given by number; see `read`."""
        return self.read(self.starts(np.asarray(indices)), B)

    def read(self, starts, B=None):
        """The inputs and targets, int64 (B, T), of windows given by their first tokens; B defaults to `len(starts)`.

        Rows beyond `starts` are padding: their targets are -1, which the loss ignores.
        """
        if B is None:
            B = len(starts)
        x, y = np.zeros((B, self.T), np.int64), np.full((B, self.T), IGNORE, np.int64)
        shards = shard_of(self.begin, starts)
        places = starts - self.begin[shards]
        for row, (shard, start) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            window = self.shards.read(shard, start, start + self.T + 1)
            if window.max() > self.max_id:
                self.refuse_ids(shard, window)
            x[row], y[row] = window[:-1], window[1:]
            if self.counted is not None:
                y[row, ~self.targets_counted(starts[row])] = IGNORE
        return torch.from_numpy(x), torch.from_numpy(y)

    def targets_counted(self, start):
        """Which targets count, bool (T,), of the window that begins at token `start`; `counted` must be given."""
        return self.counted[start + 1 : start + self.T + 1]

    def count_targets(self, starts):
        """How many targets count in each of these windows, int64 of the shape of `starts`."""
        if self.counted is None:
            return np.full(starts.shape, self.T)
        return np.reshape([self.targets_counted(start).sum() for start in starts.flat], starts.shape)

    def refuse_ids(self, shard, window):
        raise RankError(  # only the rank whose window it is meets it
            f"{self.shards.paths[shard]} holds token id {window.max()}, but the largest id in meta.json is"
            f" {self.max_id}: the file has changed since it was written; make the folder again"
        )


def cumulative(counts):
    """0 and the sums of the first 1, 2, … counts: the first element of each shard, and the end of the last."""
    return np.concatenate(([0], np.cumsum(counts)))


def shard_of(first, indices):
    """The shards that hold elements given by number; `first`: each shard's first element."""
    return np.searchsorted(first, indices, side="right") - 1


class TrainLoader:
    """Yields the batches of each step from the endless, shuffled sequence of training windows."""

    def __init__(self, windows, B, total_batch_size, seed, rank=0, world_size=1):
        self.windows, self.B, self.seed = windows, B, seed
        self.rank, self.world_size = rank, world_size
        self.windows_per_step = total_batch_size // windows.T
        self.grad_accum_steps = self.windows_per_step // (B * world_size)
        self.position = 0  # windows taken so far, by all ranks
        self.shifts = 1  # 0: every epoch has the windows of the first, in runs that an earlier version began

    def next_step(self):
        """This rank's micro-batches of the next step: a generator of `grad_accum_steps` triples (x, y, divisor).

        x and y are int64 (B, T). The mean loss of each, over its targets that count, divided by `divisor`, summed over
        the micro-steps and averaged over the ranks, is the mean over all targets that count in the step.
        """
        batches = self.step_at(self.position)
        self.position += self.windows_per_step
        return batches

    def step_at(self, position):
        """This rank's micro-batches of the step that begins at window `position`, without taking them."""
        starts = self.order(position, self.windows_per_step).reshape(-1, self.world_size, self.B)
        counts = self.windows.count_targets(starts).sum(-1)  # (micro-steps, ranks)
        divisors = counts.sum() / (counts[:, self.rank] * self.world_size)
        return (
            (*self.windows.read(mine), divisor)
            for mine, divisor in zip(starts[:, self.rank], divisors.tolist(), strict=True)
        )

    def order(self, position, count):
        """The windows at `position` … `position + count - 1` of the endless sequence: their first tokens, (count,)."""
        parts = []
        while count:
            epoch, taken, n = self.epoch_at(position)
            take, key = min(count, n - taken), (self.seed, epoch)
            indices = permute(np.arange(taken, taken + take), n, key)
            parts.append(self.windows.starts(indices, key if epoch > 0 and self.shifts else None))
            position, count = position + take, count - take
        return np.concatenate(parts)

    def epoch_at(self, position):
        """(epoch, how many of its windows come before `position`, how many it has)."""
        n = len(self.windows)
        if position < n or not self.shifts:
            return *divmod(position, n), n
        shifted = self.windows.count_shifted()
        epoch, taken = divmod(position - n, shifted)
        return epoch + 1, taken, shifted

    def state_dict(self):
        return {"seed": self.seed, "position": self.position, "shifts": self.shifts}

    def load_state_dict(self, state):
        self.seed, self.position = state["seed"], state["position"]
        self.shifts = state.get("shifts", 0)  # checkpoints of earlier versions have none: their runs keep that rule


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
