"""--watch logs the norms of gradients and updates by layer, and trains the same weights to the bit."""

import pytest
import torch

from tracking.runlog import read_log
from train_gpt2 import train
from training import evaluation

PARTS = {  # of a model with two blocks
    "wte": ["wte.weight"],
    "wpe": ["wpe.weight"],
    "ln_f": ["ln_f.weight", "ln_f.bias"],
}
for i in range(2):
    PARTS[f"h.{i}.ln"] = [f"h.{i}.ln_{j}.{kind}" for j in (1, 2) for kind in ("weight", "bias")]
    for part, first in (("attn", "c_attn"), ("mlp", "c_fc")):
        PARTS[f"h.{i}.{part}"] = [f"h.{i}.{part}.{n}.{kind}" for n in (first, "c_proj") for kind in ("weight", "bias")]


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Draw no plots, which takes longer than these runs."""
    monkeypatch.setattr(evaluation, "draw_plot", lambda run: None)


def norm_of(tensors, names):
    return torch.cat([tensors["transformer." + name].flatten() for name in names]).double().norm().item()


@pytest.mark.parametrize("grad_clip", [0.0, 0.05])
def test_watch_logs_the_norms_of_gradients_and_updates(make_run, grad_clip):
    run = make_run(max_steps=1, watch=True, grad_clip=grad_clip)
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    for x, y, divisor in run.loader.step_at(0):
        (run.model(run.rt.to_device(x), run.rt.to_device(y)) / divisor).backward()
    gradients = {name: p.grad.clone() for name, p in run.model.named_parameters()}
    run.model.zero_grad()
    train(run)
    changes = {name: p.detach() - before[name] for name, p in run.model.named_parameters()}
    log = read_log(run.cfg.log_dir)
    assert {name for name in log if "/" in name} == {f"{kind}/{part}" for kind in ("grad", "update") for part in PARTS}
    for part, names in PARTS.items():
        assert log[f"grad/{part}"].values == pytest.approx(norm_of(gradients, names), rel=1e-3)
        expected = norm_of(changes, names) / norm_of(before, names)
        assert log[f"update/{part}"].values == pytest.approx(expected, rel=1e-3)
    assert sum(log[f"grad/{part}"].values ** 2 for part in PARTS) == pytest.approx(log["norm"].values ** 2, rel=1e-3)


def test_watch_trains_the_same_bits_and_logs_only_when_asked(make_run):
    weights, logs = [], []
    for settings in ({}, {"watch": True}):
        run = make_run(max_steps=4, log_interval=2, dropout=0.1, **settings)
        train(run)
        weights.append([p.detach().clone() for p in run.model.parameters()])
        logs.append(read_log(run.cfg.log_dir))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert not any("/" in name for name in logs[0])
    assert logs[1]["grad/h.1.mlp"].steps.tolist() == [0, 2]
    assert logs[0]["train"].values.tolist() == logs[1]["train"].values.tolist()
