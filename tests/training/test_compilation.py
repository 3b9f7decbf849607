"""The compiled model computes the loss and the gradients of the eager one, in every number format."""

import copy
import functools

import pytest
import torch
from models import random_ids

from configurator import configure
from model import GPT, GPTConfig
from ops.cross_entropy import head_loss, torch_loss
from system import runtime
from system.errors import UserError
from training.compilation import (
    MODES,
    REDUCE_OVERHEAD,
    compile_settings,
    keeps_gradients,
    switch_off_mix_order_reduction,
)
from training.config import TrainConfig
from training.optimizer import Optimizers

SMALL = GPTConfig(block_size=32, vocab_size=100, n_layer=1, n_head=2, n_embd=32)
# On a GPU the shapes of GPT-2: inductor fuses the reductions over many rows into other kernels than those over few.
LARGE = GPTConfig(block_size=1024, vocab_size=50257, n_layer=2, n_head=12, n_embd=768)


def loss_and_gradients(model, rt, idx, targets, micro_steps=2):
    """The mean loss and {parameter: gradient} after `micro_steps` accumulated micro-steps."""
    model.zero_grad()
    for _ in range(micro_steps):
        with rt.autocast():
            loss = model(idx, targets) / micro_steps
        loss.backward()
    gpt = getattr(model, "_orig_mod", model)
    return loss.item() * micro_steps, {name: p.grad.double().clone() for name, p in gpt.named_parameters()}


def error(gradients, exact):
    """{parameter: norm of the difference / norm of the exact gradient}."""
    return {name: ((gradients[name] - grad).norm() / grad.norm()).item() for name, grad in exact.items()}


def setup(device, dtype):
    """(model, runtime, ids, targets)."""
    rt = runtime.start(device.type, dtype)
    torch.manual_seed(0)
    config = LARGE if device.type == "cuda" else SMALL
    model = GPT(config).to(device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0, 0.02)
    ids = [random_ids(4, config.block_size, vocab_size=config.vocab_size, seed=seed).to(device) for seed in (1, 2)]
    return model, rt, *ids


BOUNDS = {"float32": 2e-5, "tf32": 5e-3, "bfloat16": 0.05, "float16": 0.01}  # of a gradient's error


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", pytest.param("tf32", marks=pytest.mark.cuda)])
def test_gradients_of_short_formats_are_close_to_float32(device, dtype):
    """The loss within 0.5%, each gradient within the bound of its format."""
    model, rt, *batch = setup(device, "float32")
    exact_loss, exact = loss_and_gradients(model, rt, *batch)
    loss, gradients = loss_and_gradients(model, runtime.start(device.type, dtype), *batch)
    assert loss == pytest.approx(exact_loss, rel=5e-3)
    for name, value in error(gradients, exact).items():
        assert value < BOUNDS[dtype], name


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("float32", {"compile_backend": "aot_eager"}),  # traced and differentiated as for inductor, in seconds
        pytest.param("float32", {}, marks=pytest.mark.slow),
        pytest.param("bfloat16", {}, marks=pytest.mark.slow),
        pytest.param("float16", {}, marks=pytest.mark.cuda),
        pytest.param("tf32", {}, marks=pytest.mark.cuda),
        pytest.param("bfloat16", {"compile_mode": MODES[1]}, marks=pytest.mark.cuda),
        pytest.param("bfloat16", {"compile_mode": REDUCE_OVERHEAD}, marks=pytest.mark.cuda),
    ],
)
def test_compiled_loss_and_gradients_are_those_of_eager(device, dtype, settings):
    """Both are compared with float32: compiling may round elsewhere, but not further from the exact gradient."""
    model, rt, *batch = setup(device, dtype)
    cfg = TrainConfig(**settings)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), **compile_settings(cfg))
    optimizers = Optimizers([torch.optim.SGD(compiled.parameters())], keeps_gradients(cfg, device.type))
    compiled.zero_grad = optimizers.zero_grad
    for _ in range(3 if device.type == "cuda" else 1):  # CUDA graphs are recorded in the second call
        compiled_loss, compiled_gradients = loss_and_gradients(compiled, rt, *batch)
    eager_loss, eager_gradients = loss_and_gradients(model, rt, *batch)
    _, exact = loss_and_gradients(model, runtime.start(device.type, "float32"), *batch)
    assert compiled_loss == pytest.approx(eager_loss, rel=BOUNDS[dtype] / 10)
    eager_error, compiled_error = error(eager_gradients, exact), error(compiled_gradients, exact)
    for name, value in compiled_error.items():
        assert value < 1.5 * eager_error[name] + BOUNDS["float32"], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "loss", [torch_loss, functools.partial(torch_loss, mask_padding=True), functools.partial(head_loss, chunks=3)]
)
def test_compiled_losses_have_the_same_gradients(device, loss):
    """The ways to compute the loss on a GPU, compiled, on a CPU too: whole, with padding masked, and in chunks."""
    model, rt, *batch = setup(device, "float32")
    exact_loss, exact = loss_and_gradients(model, rt, *batch)
    model.head_loss = loss
    torch._dynamo.reset()
    compiled_loss, gradients = loss_and_gradients(torch.compile(model), rt, *batch)
    assert compiled_loss == pytest.approx(exact_loss, rel=1e-5)
    assert max(error(gradients, exact).values()) < BOUNDS["float32"]


def test_compile_settings_have_a_mode_only_for_inductor():
    assert compile_settings(TrainConfig()) == {"backend": "inductor", "mode": "default"}
    assert compile_settings(TrainConfig(compile_backend="eager")) == {"backend": "eager"}
    with pytest.raises(UserError, match="compile_mode = reduce-overhead: only compile_backend = inductor has modes"):
        configure(TrainConfig, ["--compile_backend=eager", "--compile_mode=reduce-overhead"])


def test_compile_settings_switch_off_a_faulty_fusion_in_torch_2_10(monkeypatch):
    import torch._inductor.config as inductor

    for version, expected in (("2.10.0", False), ("2.11.0", True), ("2.13.0+cpu", True)):
        with inductor.patch({"triton.mix_order_reduction": True}):
            monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
            compile_settings(TrainConfig())
            assert inductor.triton.mix_order_reduction is expected
            switch_off_mix_order_reduction()
            assert not inductor.triton.mix_order_reduction


def test_keeps_gradients_only_for_cuda_graphs():
    graphs = TrainConfig(compile_mode=REDUCE_OVERHEAD)
    assert keeps_gradients(graphs, "cuda")
    assert not keeps_gradients(graphs, "cpu")  # not compiled
    assert not keeps_gradients(TrainConfig(), "cuda")
