"""Small models with large weights, so that a wrong mask, position or cache entry changes the result."""

import pytest
import torch

from model import GPT


@pytest.fixture
def make_gpt(device):
    """A function GPTConfig → GPT on the device with weights five times as large as at initialization."""

    def make(config):
        torch.manual_seed(0)
        gpt = GPT(config)
        enlarge(gpt)
        return gpt.to(device)

    return make


@pytest.fixture(scope="session")
def hugging_face(tmp_path_factory):
    """(GPT2LMHeadModel of transformers, our GPT with the same weights)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=256, n_embd=32, n_layer=2, n_head=2)).eval()
    enlarge(hf)
    folder = tmp_path_factory.mktemp("hf")
    hf.save_pretrained(folder)
    return hf, GPT.from_pretrained(str(folder))


@torch.no_grad()
def enlarge(model):
    for p in model.parameters():
        p.mul_(5)
