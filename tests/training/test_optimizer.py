"""AdamW's first step in closed form, and which rule updates which parameter."""

import pytest
import torch

from model import GPT, GPTConfig
from training.config import TrainConfig
from training.optimizer import OPTIMIZERS, Optimizers, make_adamw

pytestmark = pytest.mark.usefixtures("on_device")


def test_adamw_first_step_is_the_closed_form():
    w = torch.nn.Parameter(torch.tensor([0.5]))
    cfg = TrainConfig(max_lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
    optimizer = make_adamw([{"params": [w], "weight_decay": 0.01}], cfg)
    w.grad = torch.tensor([0.2])
    optimizer.step()
    # decay: 0.5·(1 - 1e-3·0.01) = 0.499995; then both moments are unbiased to g and g², so the step is lr·g/|g|
    assert w.item() == pytest.approx(0.498995, abs=1e-7)


def test_adamw_is_fused():
    w = torch.nn.Parameter(torch.zeros(2))
    assert Optimizers([make_adamw([{"params": [w]}], TrainConfig())]).fused


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizers_update_every_parameter_by_one_rule(kind):
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=2, n_head=2, n_embd=16))
    optimizers = Optimizers(OPTIMIZERS[kind](model, TrainConfig(adamw_lr_scale=3.0)))
    taken = [id(p) for o in optimizers.optimizers for g in o.param_groups for p in g["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    names = {id(p): name for name, p in model.named_parameters()}
    optimizers.set_lr(0.5)
    rates = [{g["lr"] for g in o.param_groups} for o in optimizers.optimizers]
    if kind == "adamw":
        assert rates == [{0.5}]
        return
    muon = [names[id(p)] for g in optimizers.optimizers[0].param_groups for p in g["params"]]
    assert len(muon) == 2 * 4
    assert all(name.startswith("transformer.h.") and name.endswith("weight") for name in muon)
    assert rates == [{0.5}, {1.5}]


def test_weight_decay_is_applied_to_matrices_only():
    model = GPT(GPTConfig(block_size=8, vocab_size=50, n_layer=2, n_head=2, n_embd=16))
    for optimizer in OPTIMIZERS["adamw"](model, TrainConfig(weight_decay=0.25)):
        for group in optimizer.param_groups:
            for p in group["params"]:
                assert group["weight_decay"] == (0.25 if p.dim() >= 2 else 0.0)


def test_gradients_that_are_kept_stay_at_their_address():
    """As CUDA graphs need it: allocated before the first backward pass, zeroed in place."""
    w = torch.nn.Parameter(torch.tensor([0.5]))
    optimizers = Optimizers([make_adamw([{"params": [w]}], TrainConfig())], keep_gradients=True)
    address = w.grad.data_ptr()
    for _ in range(2):
        (3 * w).sum().backward()
        assert (w.grad.item(), w.grad.data_ptr()) == (3.0, address)
        optimizers.zero_grad()
        assert (w.grad.item(), w.grad.data_ptr()) == (0.0, address)
