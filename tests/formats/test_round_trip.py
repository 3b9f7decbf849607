"""Writing a model and reading it back gives the same bits, in every format, for random shapes."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from models import needs_gguf, save_checkpoint, small_gpt

from formats import gguf, hugging_face, llmc
from formats.read import read

SPECIAL = torch.tensor([-0.0, 1e-40, 3e-6, 65504.0, -1.0 / 3.0])  # 1e-40 is subnormal, and 3e-6 in float16


@dataclass(frozen=True)
class Format:
    """How a test writes a GPT to a path, and the dtype in which the file holds a parameter."""

    write: Callable
    stored: Callable = lambda name, tensor: torch.float32


def write_checkpoint(path, model):
    save_checkpoint(path, model)


def write_folder(path, model):
    hugging_face.write(path, model.config.shape, model.to_tensors(), "byte")


def write_llmc(dtype):
    return Format(
        lambda path, model: llmc.write_model(path, model.config.shape, model.to_tensors(), dtype),
        lambda name, tensor: dtype,
    )


def write_gguf(dtype):
    return Format(
        lambda path, model: gguf.write(path, model.config.shape, model.to_tensors(), "byte", dtype),
        lambda name, tensor: dtype if tensor.dim() == 2 and "wpe" not in name else torch.float32,
    )


FORMATS = {
    "checkpoint": Format(write_checkpoint),
    "Hugging Face": Format(write_folder),
    "llm.c float32": write_llmc(torch.float32),
    "llm.c bfloat16": write_llmc(torch.bfloat16),
    "GGUF float32": write_gguf(torch.float32),
    "GGUF float16": write_gguf(torch.float16),
    "GGUF bfloat16": write_gguf(torch.bfloat16),
}


def random_model(seed):
    """A byte model of a random shape, whose first matrices hold values that are easily lost."""
    rng, n_head = random.Random(seed), random.Random(seed).randint(1, 4)
    sizes = {"n_layer": rng.randint(1, 4), "n_head": n_head, "n_embd": n_head * rng.randint(2, 9)}
    model = small_gpt(block_size=rng.randint(1, 40), vocab_size=257, **sizes)
    for name in ("transformer.wte.weight", "transformer.h.0.mlp.c_proj.weight", "transformer.ln_f.bias"):
        values = model.to_tensors()[name].view(-1)
        values[: len(SPECIAL)] = SPECIAL[: len(values)]
    return model


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_gguf) if "GGUF" in n else n for n in FORMATS])
def test_write_and_read_back_is_the_identity(tmp_path, name, seed):
    model = random_model(seed)
    FORMATS[name].write(tmp_path / "written", model)
    found = read(str(tmp_path / "written"))
    assert (found.shape, found.tokenizer, found.chat) == (model.config.shape, "byte", False)
    tensors, expected = found.tensors(), model.to_tensors()
    assert tensors.keys() == expected.keys()
    for key, tensor in expected.items():
        dtype = FORMATS[name].stored(key, tensor)
        bits = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}[dtype]
        stored = tensors[key].contiguous()
        assert stored.dtype == dtype, key
        assert torch.equal(stored.view(bits), tensor.to(dtype).contiguous().view(bits)), key
