"""The packed copy for CPUs computes what autocast computes."""

import pytest
import torch

from inference.eval_model import packed
from model import GPTConfig


@pytest.mark.cpu
@pytest.mark.parametrize("operators", ["oneDNN", "public"])
@torch.no_grad()
def test_packed_error_is_that_of_autocast(make_gpt, operators, monkeypatch):
    if operators == "public":
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    gpt = make_gpt(GPTConfig(block_size=16, vocab_size=97, n_layer=2, n_head=2, n_embd=32)).eval()
    idx = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(0))
    exact = gpt(idx)
    with torch.autocast("cpu", torch.bfloat16):
        autocast_error = (gpt(idx).float() - exact).abs().mean()
    copied = packed(gpt)
    assert (copied(idx).float() - exact).abs().mean() < 1.3 * autocast_error
    assert copied.transformer.wte.weight is gpt.transformer.wte.weight, "embeddings are shared, not copied"
