"""The order of the training data: each window once per epoch, the same for every B and world size."""

import itertools

import numpy as np
import pytest

from system.errors import UserError
from tokens.dataloader import TrainLoader, Windows, permute, validation_batches
from tokens.shards import Shards, write_shard

T = 8


def make_windows(lengths=(100, 57, 9, 8, 1), T=T):
    """Shards of consecutive numbers: the value of a token is its position."""
    starts = np.cumsum([0, *lengths])
    shards = [np.arange(a, a + n, dtype=np.uint16) for a, n in zip(starts, lengths, strict=False)]
    return Windows(Shards.in_memory(shards), T)


def expected_windows(lengths=(100, 57, 9, 8, 1)):
    """The first tokens of all windows, from the definition: ⌊(n-1)/T⌋ per shard, none across shards."""
    firsts, start = [], 0
    for n in lengths:
        firsts += [start + i * T for i in range((n - 1) // T)]
        start += n
    return firsts


def take(loader, steps):
    """The first tokens of the windows of each step."""
    return [[row for x, _, _ in loader.next_step() for row in x[:, 0].tolist()] for _ in range(steps)]


def flat(steps):
    return [row for step in steps for row in step]


def take_shifted_epochs(windows, epochs, seed=1):
    """The first tokens of all windows of the epochs after the first, each sorted."""
    n = windows.count_shifted()
    loader = TrainLoader(windows, B=n, total_batch_size=n * windows.T, seed=seed)
    loader.position = len(windows)
    return [sorted(step) for step in take(loader, epochs)]


def make_masked_windows():
    """(windows, mask): a random mask over shards of 2 and 3 windows, in which each window has a target that counts."""
    generator = np.random.default_rng(0)
    lengths = (2 * T + 1, 3 * T + 1)
    counted = generator.random(sum(lengths)) < np.repeat([0.9, 0.1], lengths)
    counted[T - 1 :: T] = True
    windows = make_windows(lengths)
    return Windows(windows.shards, T, counted=counted), counted


def test_masked_windows_ignore_the_targets_that_do_not_count():
    windows, counted = make_masked_windows()
    x, y = windows.batch(np.arange(5))
    for row, start in enumerate(expected_windows((2 * T + 1, 3 * T + 1))):
        assert x[row].tolist() == list(range(start, start + T))
        assert y[row].tolist() == [i if counted[i] else -1 for i in range(start + 1, start + T + 1)]


@pytest.mark.parametrize(("B", "world_size"), [(4, 1), (1, 1), (1, 2), (2, 2)])
def test_masked_loader_weights_micro_batches_by_their_targets(B, world_size):
    windows, _ = make_masked_windows()
    loaders = [TrainLoader(windows, B, 4 * T, 5, rank, world_size) for rank in range(world_size)]
    seen = []
    for _ in range(5):  # four epochs
        batches = [batch for loader in loaders for batch in loader.next_step()]
        losses = [
            (y[y != -1] * 1.0).mean().item() / divisor for _, y, divisor in batches
        ]  # the loss is the target's id
        targets = np.concatenate([y[y != -1] for _, y, _ in batches])
        assert sum(losses) / world_size == pytest.approx(targets.mean())
        seen += [row for x, _, _ in batches for row in x[:, 0].tolist()]
    assert sorted(seen) == sorted(4 * expected_windows((2 * T + 1, 3 * T + 1))), (
        "each conversation once per epoch, whole"
    )


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 17, 1000, 4097])
def test_permute_is_a_permutation_for_every_size(n):
    for epoch in range(3):
        assert sorted(permute(np.arange(n), n, (1337, epoch)).tolist()) == list(range(n))


def test_permute_differs_by_epoch_and_seed_and_shows_no_pattern():
    n = 10_000
    orders = [permute(np.arange(n), n, key) for key in ((1, 0), (1, 1), (2, 0))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders[a] == orders[b]).mean() < 0.01
    for order in orders:
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.05
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05


def test_windows_of_an_epoch_are_each_taken_once():
    windows = make_windows()
    assert len(windows) == 12 + 7 + 1
    loader = TrainLoader(windows, B=2, total_batch_size=4 * T, seed=1)
    epoch = flat(take(loader, 5))
    assert sorted(epoch) == expected_windows()


def test_windows_of_the_first_epoch_stay_those_of_earlier_versions():
    loader = TrainLoader(make_windows(), B=4, total_batch_size=4 * T, seed=7)
    assert flat(take(loader, 2)) == [148, 88, 0, 32, 56, 48, 80, 64]


def test_windows_of_a_later_epoch_begin_at_an_offset_in_each_shard():
    lengths, epochs = (100, 57, 9, 8, 1, 16), 100
    ends = np.cumsum(lengths)
    offsets = [set() for _ in lengths]
    for epoch in take_shifted_epochs(make_windows(lengths), epochs):
        by_shard = [[row for row in epoch if end - n <= row < end] for n, end in zip(lengths, ends, strict=True)]
        assert [len(rows) for rows in by_shard] == [11, 6, 1, 0, 0, 1], "one fewer, but never the only one"
        for shard, rows in enumerate(by_shard):
            assert all(b - a == T for a, b in itertools.pairwise(rows)), "they follow each other: no token twice"
            assert all(row + T < ends[shard] for row in rows), "the last target is in the shard"
            offsets[shard] |= {row - (ends[shard] - lengths[shard]) for row in rows[:1]}
    room = [n - 1 - windows * T for n, windows in zip(lengths, (11, 6, 1, 0, 0, 1), strict=True)]
    assert [len(found) for found in offsets] == [room[0] + 1, room[1] + 1, 1, 0, 0, 8], "every offset occurs"


def test_offsets_depend_on_seed_epoch_and_shard():
    windows = make_windows((10_000,) * 6, T=1000)
    shards = np.arange(6)
    keys = [(1, 1), (1, 2), (2, 1)]
    offsets = np.array([windows.offsets(shards, key) for key in keys])
    assert len(set(offsets.ravel().tolist())) == offsets.size
    assert all(windows.offsets(shards[i:], (1, 2)).tolist() == offsets[1, i:].tolist() for i in range(6))


def test_windows_pair_each_token_with_the_next_of_the_same_shard():
    loader = TrainLoader(make_windows(), B=4, total_batch_size=4 * T, seed=1)
    for x, y, _ in itertools.chain.from_iterable(loader.next_step() for _ in range(12)):  # more than two epochs
        assert x.shape == y.shape == (4, T)
        assert (y == x + 1).all()
        assert (x[:, 1:] == x[:, :-1] + 1).all()


@pytest.mark.parametrize(("B", "world_size"), [(1, 1), (2, 1), (8, 1), (1, 2), (4, 2), (1, 4), (2, 4)])
def test_train_loader_step_is_the_same_for_every_B_and_world_size(B, world_size):
    windows = make_windows()
    reference = take(TrainLoader(windows, B=4, total_batch_size=8 * T, seed=7), 6)
    loaders = [TrainLoader(windows, B, 8 * T, 7, rank, world_size) for rank in range(world_size)]
    for expected in reference:
        micro_steps = zip(*(list(loader.next_step()) for loader in loaders), strict=True)
        rows = [row for ranks in micro_steps for x, _, _ in ranks for row in x[:, 0].tolist()]
        assert rows == expected


def test_train_loader_step_may_be_longer_than_an_epoch():
    loader = TrainLoader(make_windows(), B=5, total_batch_size=50 * T, seed=1)
    (step,) = take(loader, 1)
    assert sorted(step[:20]) == expected_windows()
    assert [sorted(step[20:38])] == take_shifted_epochs(make_windows(), 1)


@pytest.mark.parametrize("steps", [0, 3, 5, 9, 10])  # the epochs end after 5, 9.5, 14 steps
def test_train_loader_resumes_from_three_integers(steps):
    windows = make_windows()
    loader = TrainLoader(windows, B=2, total_batch_size=4 * T, seed=3)
    take(loader, steps)
    state = loader.state_dict()
    assert sorted(state) == ["position", "seed", "shifts"]
    assert all(type(value) is int for value in state.values())
    resumed = TrainLoader(windows, B=1, total_batch_size=4 * T, seed=0)
    resumed.load_state_dict(state)
    assert take(resumed, 8) == take(loader, 8)


def test_train_loader_continues_a_run_of_an_earlier_version_with_its_windows():
    loader = TrainLoader(make_windows(), B=4, total_batch_size=4 * T, seed=0)
    loader.load_state_dict({"seed": 7, "position": 20})
    epoch = flat(take(loader, 5))
    assert epoch[:8] == [40, 148, 64, 132, 8, 56, 72, 16]
    assert sorted(epoch) == expected_windows()
    assert loader.state_dict() == {"seed": 7, "position": 40, "shifts": 0}


@pytest.mark.parametrize(("B", "world_size"), [(1, 1), (3, 1), (7, 1), (2, 2), (3, 3)])
def test_validation_batches_are_the_same_tokens_for_every_B_and_world_size(B, world_size):
    windows, val_tokens = make_windows(), 11 * T + 3
    seen, counts = [], []
    for rank in range(world_size):
        batches = list(validation_batches(windows, B, val_tokens, rank, world_size))
        counts.append(len(batches))
        for x, y in batches:
            assert x.shape == (B, T)
            seen += [row[0].item() for row, targets in zip(x, y, strict=True) if (targets != -1).all()]
            assert all((targets == -1).all() or (targets != -1).all() for targets in y)
    assert sorted(seen) == expected_windows()[:11]
    assert len(set(counts)) == 1


def test_validation_batches_of_more_tokens_than_the_split_holds_are_the_whole_split():
    rows = sum((y[:, 0] != -1).sum().item() for _, y in validation_batches(make_windows(), 3, 10**9))
    assert rows == 20


def test_windows_report_a_split_shorter_than_one_window():
    with pytest.raises(UserError, match=r"val split's longest shard has 8 tokens, fewer than T \+ 1 = 9"):
        Windows(Shards.in_memory([np.arange(8, dtype=np.uint16)]), T, "val")


def test_windows_refuse_ids_above_the_largest_that_meta_json_gives(tmp_path):
    write_shard(tmp_path / "x_train.npy", np.array([*range(8), 300, *range(8)], np.uint16))
    windows = Windows(Shards([tmp_path / "x_train.npy"], [17]), 4, max_id=256)
    windows.batch([0])
    with pytest.raises(UserError, match=r"x_train\.npy holds token id 300, but the largest id in meta\.json is 256"):
        windows.batch([2])
