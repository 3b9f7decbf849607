"""A trained model, or one in training, made ready for being read from: to sample, to score."""

import contextlib
import copy

import torch
from torch import nn
from torch.nn import functional as F

from model import GPT


@contextlib.contextmanager
def reading(model, run):
    """The `GPT` inside `model`, for use inside this context: eval mode, no gradients, in the `Runtime`'s dtype.

    `model` may be a compiled or distributed wrapper; the GPT runs uncompiled, so that no shape met here is compiled.
    Afterwards the model is as it was. On a CPU in bfloat16 it is a packed copy, which stands for the weights of now.
    """
    gpt = unwrap(model)
    on_cpu_in_bf16 = run.device.type == "cpu" and run.dtype == torch.bfloat16
    with torch.no_grad(), eval_mode(gpt), contextlib.nullcontext() if on_cpu_in_bf16 else run.autocast():
        yield packed(gpt) if on_cpu_in_bf16 else gpt


def unwrap(model):
    """The `GPT` inside a compiled or distributed wrapper, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, GPT))


@contextlib.contextmanager
def eval_mode(model):
    """No dropout inside; afterwards the model is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def packed(gpt):
    """A copy of `gpt` for a CPU, its matrices in bfloat16 and packed; what isn't a matrix of a product is shared.

    It computes what autocast computes, with less in between, but for one thing: as nothing makes it bfloat16, a
    `KVCache` is float32 here, in which attention from a single token is several times faster.
    """
    copied = copy.deepcopy(gpt, memo={id(p): p for p in gpt.parameters()})  # the structure, not the parameters
    copied.lm_head = PackedLinear(gpt.lm_head)
    for block in copied.transformer.h:
        block.attn.c_attn = PackedLinear(block.attn.c_attn)
        block.attn.c_proj = PackedLinear(block.attn.c_proj)
        block.mlp = PackedMLP(block.mlp)
    return copied


class PackedLinear(nn.Module):
    """A linear layer in bfloat16, its weight in the order in which oneDNN reads it, with GELU after it or without.

    A plain weight is brought into that order in each call, which for a single token costs more than the product itself.
    torch has no public name for the two operators (torch.compile uses them for the same end), so where a version lacks
    them the weight stays plain.
    """

    def __init__(self, linear, gelu=False):
        super().__init__()
        self.gelu = gelu
        self.weight = linear.weight.detach().bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
        self.product = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if pack else None
        if self.product:
            self.weight = pack(self.weight, 1)  # for rows by the one; more rows are no slower for it

    def forward(self, x):
        x = x.bfloat16()
        if self.product:
            return self.product(x, self.weight, self.bias, "gelu" if self.gelu else "none", [], "tanh")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if self.gelu else y


class PackedMLP(nn.Module):
    def __init__(self, mlp):
        super().__init__()
        self.c_fc = PackedLinear(mlp.c_fc, gelu=True)
        self.c_proj = PackedLinear(mlp.c_proj)

    def forward(self, x):
        return self.c_proj(self.c_fc(x))
