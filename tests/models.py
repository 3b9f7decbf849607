"""Small models for tests, ours and those of other programs, and how to compare them."""

import importlib.util
from dataclasses import asdict

import pytest
import torch
import transformers

from formats import checkpoint
from model import GPT, GPTConfig
from system.errors import UserError

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="the package gguf is not installed: requirements-dev.txt has it"
)
SHAPE = {"block_size": 32, "vocab_size": 100, "n_layer": 2, "n_head": 4, "n_embd": 32}


def random_ids(*shape, vocab_size=100, seed=1):
    ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed), device="cpu")
    return ids.to(torch.get_default_device())


def small_gpt(**changes):
    """A GPT of SHAPE with `changes`, in which no bias or LayerNorm has its initial value."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | changes))
    for p in model.to_tensors().values():
        p.add_(0.1 * torch.randn_like(p))
    return model


def save_checkpoint(path, model, tokenizer="byte", step=7):
    """Write a checkpoint with what the reader of a model needs. Returns its path as a string."""
    state = {"model": model.state_dict(), "model_config": asdict(model.config), "tokenizer": tokenizer, "step": step}
    checkpoint.save(path, state)
    return str(path)


def hugging_face_model(block_size=32, vocab_size=100, n_layer=2, n_head=4, n_embd=32):
    """The GPT-2 of `transformers`, random, without dropout."""
    torch.manual_seed(0)
    shape = {"n_positions": block_size, "vocab_size": vocab_size, "n_layer": n_layer, "n_head": n_head}
    settings = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1}
    settings |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=n_embd, **shape, **settings))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def causal_masks():
    """The masks that older versions of Hugging Face's and nanoGPT's code saved among the weights."""
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    return masks | {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


def assert_close(ours, theirs, what="logits"):
    """Within 1e-5 of the tensor's largest value."""
    gap = (ours - theirs).abs().max().item()
    assert gap <= 1e-5 * theirs.abs().max().item(), f"{what}: {gap} of {theirs.abs().max()}"


@torch.no_grad()
def assert_same_logits(ours, theirs):
    """A GPT and a model of `transformers`."""
    idx = random_ids(2, 16, vocab_size=theirs.config.vocab_size)
    assert_close(ours(idx), theirs(idx).logits)


def assert_same_parameters(a, b):
    assert a.config == b.config
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def refusal(path):
    """The one line with which `path` is refused."""
    with pytest.raises(UserError) as caught:
        GPT.from_pretrained(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)
