"""The packed copy for CPUs computes what autocast computes."""

import os

import pytest
import torch

from inference.eval_model import find_newest, packed
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


def test_find_newest_takes_the_newest_checkpoint_or_the_best_of_its_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(("new/model_00002.pt", "new/model_best.pt", "old/model_00009.pt")):
        path = tmp_path / "log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_newest(best=False) == "log/new/model_00002.pt"
    assert find_newest(best=True) == "log/new/model_best.pt"
    assert "--model is not given: log/new/model_best.pt, written" in capsys.readouterr().err
