"""Checkpoints: whole or absent, checked before use, and never able to run code."""

import os
import pickle
import random

import pytest
import torch

from formats import checkpoint
from system.errors import UserError

STATE = {"step": 7, "model": {"w": torch.arange(12.0).view(3, 4)}, "notes": ["a", None, 1.5, True], "pair": (1, 2)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model_00007.pt"
    checkpoint.save(path, STATE)
    return path


def test_what_is_saved_comes_back(saved):
    state = checkpoint.load(saved)
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert (state["step"], state["notes"], state["pair"]) == (7, STATE["notes"], (1, 2))


def test_plain_torch_reads_it_too(saved):
    state = torch.load(saved, weights_only=True, mmap=True)
    assert state["step"] == 7


def test_any_flipped_byte_is_detected(saved):
    content = saved.read_bytes()
    generator = random.Random(0)
    places = {0, 1, len(content) - 1, len(content) - 70, *generator.sample(range(len(content)), 200)}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model_00007\.pt is damaged"):
            checkpoint.load(saved)


def test_any_truncation_is_detected(saved):
    content = saved.read_bytes()
    for length in (0, 1, 22, 64, 65, len(content) // 2, len(content) - 64, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model_00007\.pt is damaged"):
            checkpoint.load(saved)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["MALICIOUS_TARGET"],)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    target = tmp_path / "it_ran"
    monkeypatch.setenv("MALICIOUS_TARGET", str(target))
    path = tmp_path / "model_00001.pt"
    checkpoint.save(path, {"step": 1, "model": Malicious()})  # a valid checksum makes it no safer
    with pytest.raises(UserError, match="refused"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError):
        checkpoint.load(path)
    assert not target.exists()
    torch.load(_sealed(path), weights_only=False)
    assert target.exists(), "the control: unguarded, this pickle does run"


def _sealed(path):
    torch.save({"model": Malicious()}, path)
    return path


def test_another_format_version_is_named(tmp_path, monkeypatch):
    path = tmp_path / "model_00001.pt"
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    checkpoint.save(path, STATE)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format_version 99, this code reads 1"):
        checkpoint.load(path)


def test_a_failed_save_leaves_the_old_one_and_no_litter(saved, tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("no space, say")

    before = saved.read_bytes()
    with pytest.raises(RuntimeError):
        checkpoint.save(saved, {"step": 8, "model": torch.zeros(100_000), "bad": Unpicklable()})
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_checkpoints_are_listed_in_order_of_steps(tmp_path):
    for name in ("model_00250.pt", "model_100000.pt", "model_01000.pt", ".model_00300.pt.tmp", "model_x.pt", "log.txt"):
        (tmp_path / name).touch()
    assert list(checkpoint.list_checkpoints(tmp_path)) == [250, 1000, 100000]
    assert checkpoint.list_checkpoints(tmp_path / "absent") == {}


def test_newest_checkpoint_is_the_last_written_at_any_depth(tmp_path):
    with pytest.raises(UserError, match=r"train_gpt2\.py.*--model"):
        checkpoint.newest_checkpoint(tmp_path)
    old, new = tmp_path / "a" / "model_00900.pt", tmp_path / "b" / "deep" / "model_00100.pt"
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.touch()
    os.utime(old, (1e9, 1e9))
    assert checkpoint.newest_checkpoint(tmp_path) == str(new)
    os.utime(old)
    os.utime(new, (1e9, 1e9))
    assert checkpoint.newest_checkpoint(tmp_path) == str(old)
