"""`read` finds the format of a file by its content and reads tensors only when they are used."""

import pytest
import torch
from models import SHAPE, hugging_face_model, refusal, save_checkpoint, small_gpt

from formats.read import read
from model import GPT
from system.errors import UserError


def test_read_refuses_files_that_are_no_models(tmp_path):
    path = tmp_path / "file"
    assert "no such model" in refusal(path)
    contents = {
        b"": "is not a model",
        b"a line of text\n": "is not a model",
        b"\x89PNG\r\n\x1a\n" + bytes(100): "is not a model",
        b"PK\3\4" + bytes(100): "damaged",
        b"\x80\2" + bytes(100): "damaged",
    }
    for content, words in contents.items():
        path.write_bytes(content)
        assert words in refusal(path)


def test_read_takes_the_newest_checkpoint_of_a_folder(tmp_path):
    for step in (250, 1000):
        save_checkpoint(tmp_path / f"model_{step:05d}.pt", small_gpt(), step=step)
    (tmp_path / "config.json").write_text("{}")  # of the run
    assert read(str(tmp_path)).source == f"{tmp_path / 'model_01000.pt'} (step 1000)"


@pytest.mark.parametrize("kind", ["checkpoint", "hugging_face"])
def test_read_gives_the_shape_without_reading_tensors(tmp_path, kind):
    """The tensors are damaged, which only `tensors()` notices."""
    path = tmp_path / "model_00007.pt"
    if kind == "checkpoint":
        save_checkpoint(path, small_gpt())
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + b"damage" + content[len(content) // 2 + 6 :])
    else:
        path = tmp_path
        hugging_face_model().save_pretrained(path)
        content = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(b"damage" + content[6:])
    model_file = read(str(path))
    assert model_file.shape == SHAPE
    with pytest.raises(UserError, match="damaged"):
        model_file.tensors()


def test_from_pretrained_returns_float32_in_eval_mode_and_draws_no_random_numbers(tmp_path):
    hugging_face_model().bfloat16().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    model = GPT.from_pretrained(str(tmp_path), dropout=0.1)
    assert torch.equal(before, torch.get_rng_state())
    assert model.config.dropout == 0.1
    assert not model.training
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.wte.weight[100:].count_nonzero() == 0
