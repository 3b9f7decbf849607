"""A rejected update is explained once: by its weights, its forward pass, its backward pass, or its data."""

import math
from types import SimpleNamespace

import pytest
import torch

from system.errors import UserError
from train_gpt2 import train
from training import diagnosis, evaluation
from training.state import WINDOW, TrainState
from training.update_filter import UpdateFilter

pytestmark = pytest.mark.usefixtures("empty_plots")


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """Draw no plots, which takes longer than these runs."""
    monkeypatch.setattr(evaluation, "draw_plot", lambda run: None)


def explanation(run, capsys):
    """The lines about step 0 of a run that ends with it, without the first, which says that the update is skipped."""
    capsys.readouterr()
    train(run)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 0: ")]
    assert "update skipped" in lines[0]
    return [line.removeprefix("step 0: ") for line in lines[1:]]


def test_diagnosis_names_weights_that_are_not_finite_once_in_a_streak(make_run, capsys):
    run = make_run(max_bad_steps=3)
    run.model.transformer.h[1].mlp.c_fc.weight.data[3, :2] = math.inf
    run.model.transformer.h[1].mlp.c_proj.weight.data[0, 0] = math.nan
    with pytest.raises(UserError, match="stopped at step 2"):
        train(run)
    output = capsys.readouterr().out
    name = "transformer.h.1.mlp.c_fc.weight"
    assert (
        output.count(f"step 0: {name} already holds values that are not finite (2 of 4,096), and 1 other tensor") == 1
    )
    assert output.count("they were loaded so") == output.count("already holds") == 1


def test_diagnosis_of_the_only_bad_step_comes_before_the_run_ends(make_run, capsys):
    run = make_run(max_bad_steps=1)
    run.model.transformer.ln_f.weight.data[0] = math.nan
    with pytest.raises(UserError, match="stopped at step 0"):
        train(run)
    assert "transformer.ln_f.weight already holds values that are not finite (1 of 32)" in capsys.readouterr().out


def test_diagnosis_names_the_activation_that_overflows_first(make_run, capsys):
    run = make_run(max_steps=1)
    run.model.transformer.h[1].ln_2.bias.data.fill_(1.0)
    run.model.transformer.h[1].ln_2.weight.data.fill_(0.0)
    run.model.transformer.h[1].mlp.c_fc.weight.data.fill_(3e37)  # times 32 channels of 1
    lines = explanation(run, capsys)
    assert lines[0].endswith("not finite is the output of transformer.h.1.mlp.c_fc: inf")
    assert lines[1].startswith("before it, the largest value is ")
    assert "transformer.h.1." in lines[1] or "transformer.h.0." in lines[1]
    assert "lower max_lr (now 0.001)" in lines[2]


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.inf


def test_diagnosis_names_the_gradient_at_which_the_backward_pass_fails(make_run, capsys):
    run = make_run(max_steps=1)
    c_proj = run.model.transformer.h[1].attn.c_proj
    c_proj.product = lambda x, weight, bias: torch.nn.functional.linear(InfiniteGradient.apply(x), weight, bias)
    lines = explanation(run, capsys)
    assert lines[0].startswith("computed again, the forward pass is finite")
    assert "that of transformer.h.1.attn.c_attn.bias: " in lines[1]


def test_diagnosis_says_that_the_step_is_finite_when_computed_again(make_run, capsys, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args: clip(*args) * math.nan)
    lines = explanation(make_run(max_steps=1), capsys)
    assert lines[0].startswith("computed again, loss and gradient are finite")
    assert "--deterministic" in lines[1]


def test_diagnosis_compares_an_outlier_with_the_step_before(make_run, capsys):
    """The figures are those of a plain forward and backward pass over both steps' tokens."""
    run = make_run(max_steps=1, B=16, skip_norm_zscore=3.0)
    run.state.recent_norms.extend([0.1, 0.2] * (WINDOW // 2))  # norms far below this run's
    run.loader.position = run.loader.windows_per_step  # as in step 1
    norms, losses = [], []
    for position in (0, 16):
        loss = run.model(*map(run.rt.to_device, next(run.loader.step_at(position))[:2]))
        loss.backward()
        losses.append(loss.item())
        norms.append({name: p.grad.norm().item() for name, p in run.model.named_parameters()})
        run.model.zero_grad()
    growth = {name: norms[1][name] - norm for name, norm in norms[0].items()}
    name = max(growth, key=growth.get)
    lines = explanation(run, capsys)
    assert f"loss of up to {losses[1]:.4f}, and of {losses[0]:.4f} with" in lines[0]
    assert f"that of {name}: its norm is {norms[1][name]:.2g}, and {norms[0][name]:.2g} with" in lines[1]
    assert lines[2].startswith("other batches give the same")


def test_diagnosis_changes_nothing_of_the_training(make_run, monkeypatch):
    clip, calls, weights = torch.nn.utils.clip_grad_norm_, [], []

    def clip_with_one_nan(parameters, max_norm):
        calls.append(1)
        return clip(parameters, max_norm) * (math.nan if len(calls) % 4 == 2 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_with_one_nan)
    for explain in (diagnosis.explain, lambda run, outlier: []):
        monkeypatch.setattr(diagnosis, "explain", explain)
        run = make_run(max_steps=4, dropout=0.2)
        train(run)
        weights.append([p.detach().clone() for p in run.model.parameters()])
        assert run.state.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_diagnosis_that_fails_does_not_end_the_run(make_run, capsys, monkeypatch):
    monkeypatch.setattr(diagnosis, "measure_step", lambda *args: 1 / 0)
    run = make_run(max_steps=1)
    run.model.transformer.h[0].mlp.c_fc.weight.data.fill_(3e38)
    train(run)
    assert "warning: the diagnosis failed (ZeroDivisionError" in capsys.readouterr().out


def test_diagnosis_is_not_for_steps_that_search_the_scale_of_float16():
    scale = [2.0]
    scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale[0])
    update_filter = UpdateFilter(
        SimpleNamespace(skip_loss_zscore=0, skip_norm_zscore=0),
        SimpleNamespace(print=print),
        scaler,
        TrainState(),
        None,
    )
    rejected = []
    for scale[0] in (2.0, 1.0, 1.0):
        assert not update_filter.accepts(0, 3.0, math.inf)
        rejected.append(update_filter.rejected)
    assert rejected == [0, 1, 2]
    assert update_filter.accepts(1, 3.0, 1.0)
    assert update_filter.rejected == 0
