"""Our checkpoints: atomic writes, the checksum, and never running code."""

import os
import pickle
import random

import pytest
import torch
from models import assert_same_parameters, refusal, save_checkpoint, small_gpt

from formats import checkpoint
from formats.read import read
from model import GPT
from system.errors import UserError

STATE = {"step": 7, "model": {"w": torch.arange(12.0).view(3, 4)}, "notes": ["a", None, 1.5, True], "pair": (1, 2)}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model_00007.pt"
    checkpoint.save(path, STATE)
    return path


def test_load_returns_what_was_saved(saved):
    for state in (checkpoint.load(saved), torch.load(saved, weights_only=True, mmap=True)):
        assert torch.equal(state["model"]["w"], STATE["model"]["w"])
        assert (state["step"], state["notes"], state["pair"]) == (7, STATE["notes"], (1, 2))


def test_load_detects_any_flipped_byte(saved):
    content = saved.read_bytes()
    generator = random.Random(0)
    places = {0, 1, len(content) - 1, len(content) - 70, *generator.sample(range(len(content)), 200)}
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model_00007\.pt is damaged"):
            checkpoint.load(saved)


def test_load_detects_any_truncation(saved):
    content = saved.read_bytes()
    for length in (0, 1, 22, 64, 65, len(content) // 2, len(content) - 64, len(content) - 1):
        saved.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"model_00007\.pt is damaged"):
            checkpoint.load(saved)


class CreatesFolder:
    """Creates the folder CREATED when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["CREATED"],)


def test_load_refuses_pickles_that_run_code(tmp_path, monkeypatch):
    created = tmp_path / "created"
    monkeypatch.setenv("CREATED", str(created))
    path = tmp_path / "model_00001.pt"
    checkpoint.save(path, {"step": 1, "model": CreatesFolder()})  # with a valid checksum
    with pytest.raises(UserError, match="refused"):
        checkpoint.load(path)
    path.write_bytes(pickle.dumps(CreatesFolder()))
    with pytest.raises(UserError):
        checkpoint.load(path)
    assert not created.exists()
    torch.save({"model": CreatesFolder()}, path)
    torch.load(path, weights_only=False)
    assert created.exists(), "an unguarded load does create the folder"


def test_load_refuses_another_format_version(tmp_path, monkeypatch):
    path = tmp_path / "model_00001.pt"
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    checkpoint.save(path, STATE)
    monkeypatch.undo()
    with pytest.raises(UserError, match="format_version 99, this code reads 1"):
        checkpoint.load(path)


def test_failed_save_keeps_the_old_file_and_leaves_no_other(saved, tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("as on a full disk")

    before = saved.read_bytes()
    with pytest.raises(RuntimeError):
        checkpoint.save(saved, {"step": 8, "model": torch.zeros(100_000), "bad": Unpicklable()})
    assert saved.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [saved.name]


def test_list_checkpoints_is_ordered_by_step(tmp_path):
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


def test_read_returns_the_saved_model(tmp_path, device):
    model = small_gpt().to(device)
    model_file = read(save_checkpoint(tmp_path / "model_00007.pt", model))
    assert (model_file.shape, model_file.tokenizer) == (model.config.shape, "byte")
    assert model_file.source.endswith("model_00007.pt (step 7)")
    assert_same_parameters(GPT.from_file(model_file), model.cpu())


def test_read_refuses_damaged_checkpoints(tmp_path):
    path = tmp_path / "model_00007.pt"
    save_checkpoint(path, small_gpt())
    content = path.read_bytes()
    pickled = content.index(b"model_config")
    for place in (pickled, len(content) // 2, len(content) - 10, len(content) - 66, len(content) - 65):
        for bit in (1, 64):  # in the config, a weight, the checksum, and its length
            path.write_bytes(content[:place] + bytes((content[place] ^ bit,)) + content[place + 1 :])
            assert "damaged" in refusal(path)
    for length in (len(content) - 1, len(content) // 2, 100):
        path.write_bytes(content[:length])
        assert "damaged" in refusal(path)
