"""Muon's update equals its formula in NumPy, and torch's Muon on a square matrix."""

import numpy as np
import pytest
import torch

from model import GPT, GPTConfig
from training import muon
from training.config import TrainConfig
from training.muon import Muon, matrices
from training.optimizer import OPTIMIZERS
from training.parallel import load_optimizer_state

pytestmark = pytest.mark.usefixtures("on_device")
GPT_SHAPES = [(48, 16), (16, 16), (64, 16), (16, 64)]  # c_attn, attn.c_proj, c_fc, mlp.c_proj


def random_parameters(shapes, seed=1):
    """Parameters of these shapes, and two gradients of each."""
    rng = np.random.default_rng(seed)
    drawn = [[torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in shapes] for _ in range(3)]
    return [torch.nn.Parameter(p) for p in drawn[0]], drawn[1:]


def take_steps(optimizer, params, gradients):
    for grads in gradients:
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clone()
        optimizer.step()


def orthogonalized(matrix, a=3.4445, b=-4.7750, c=2.0315):
    """The five steps of Newton-Schulz in float64, by the singular values that they map."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ vt


def expected_weight(weight, gradients, lr, weight_decay, momentum, parts):
    """The weight after an update by each gradient, in float64; `parts` matrices are stacked in it."""
    mean = np.zeros_like(weight)
    for grad in gradients:
        mean = momentum * mean + (1 - momentum) * grad
        direction = momentum * mean + (1 - momentum) * grad
        updates = [orthogonalized(part) * 0.2 * np.sqrt(max(part.shape)) for part in np.split(direction, parts)]
        weight = weight - lr * weight_decay * weight - lr * np.concatenate(updates)
    return weight


@pytest.mark.parametrize("elements", [muon.CPU_ELEMENTS, 1])
def test_muon_takes_two_steps_by_its_formula(monkeypatch, elements):
    """`elements`: with 1, the twelve matrices of a shape are orthogonalized two by two on a CPU."""
    monkeypatch.setattr(muon, "CPU_ELEMENTS", elements)
    settings = {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9}
    params, gradients = random_parameters([*GPT_SHAPES, *GPT_SHAPES])
    before = [p.detach().cpu().double().numpy() for p in params]
    take_steps(Muon(params, **settings), params, gradients)
    for i, p in enumerate(params):
        steps = [grads[i].cpu().double().numpy() for grads in gradients]
        expected = expected_weight(before[i], steps, **settings, parts=3 if p.shape == (48, 16) else 1)
        np.testing.assert_allclose(p.detach().cpu().numpy(), expected, atol=2e-5, err_msg=str(tuple(p.shape)))


@pytest.mark.cpu
def test_muon_equals_torch_on_a_square_matrix():
    results = []
    for kind, settings in ((Muon, {"dtype": torch.bfloat16}), (torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"})):
        params, gradients = random_parameters([(32, 32)])
        take_steps(kind(params, lr=0.1, weight_decay=0.5, momentum=0.95, **settings), params, gradients)
        results.append(params[0].detach())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=2e-3)  # an update's elements are about 0.02


def test_muon_continues_from_the_state_of_torch():
    """Checkpoints of earlier versions hold the state of torch's Muon."""
    params, gradients = random_parameters(GPT_SHAPES)
    theirs = torch.optim.Muon(params, adjust_lr_fn="match_rms_adamw")
    take_steps(theirs, params, gradients)
    ours = Muon(params, lr=0.1, weight_decay=0.5, momentum=0.95)
    load_optimizer_state(ours, theirs.state_dict())
    for p in params:
        assert torch.equal(ours.state[p]["momentum_buffer"], theirs.state[p]["momentum_buffer"])
    assert ours.param_groups[0]["weight_decay"] == 0.5
    take_steps(ours, params, gradients)


def test_muon_leaves_a_parameter_without_a_gradient():
    params, gradients = random_parameters([(8, 8), (8, 8)])
    before = params[1].detach().clone()
    params[0].grad = gradients[0][0]
    optimizer = Muon(params, lr=0.1, weight_decay=0.5, momentum=0.95)
    optimizer.step()
    assert torch.equal(params[1], before)
    assert list(optimizer.state) == [params[0]]


def test_muon_splits_the_fused_projection_of_the_model_only():
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=16))
    split = [name for name, p in model.transformer.h.named_parameters() if p.dim() == 2 and len(matrices(p)) == 3]
    assert split == ["0.attn.c_attn.weight"]
    weight = model.transformer.h[0].attn.c_attn.weight
    assert [part.data_ptr() for part in matrices(weight)] == [part.data_ptr() for part in weight.split(16)], "q, k, v"


def test_muon_gets_the_settings_of_the_run():
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=2, n_embd=16))
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float32)):
        optimizer = OPTIMIZERS["muon"](model, TrainConfig(weight_decay=0.25, muon_momentum=0.8, dtype=dtype))[0]
        group = optimizer.param_groups[0]
        assert (group["weight_decay"], group["momentum"], optimizer.dtype) == (0.25, 0.8, expected)
