"""Linear layers in float32 by oneDNN on AMD processors.

Torch computes float32 products on a CPU with MKL, which uses half of the vector width of AMD's processors; oneDNN,
which torch includes, uses all of it. `F.linear` calls oneDNN for tensors in oneDNN's layout. For bfloat16 and for other
devices torch already picks the fastest library.
"""

import functools

import torch
from torch.nn import functional as F

from system.runtime import cpu_name

WORTH_IT = 1 << 26  # multiplications; below this, changing the layout costs more than it saves


def linear(x, weight, bias=None):
    """`F.linear`, by oneDNN where that is faster: x (…, in), weight (out, in), bias (out,) → (…, out)."""
    plain = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling() or x.dtype != torch.float32
    if plain or x.device.type != "cpu" or x.numel() * weight.size(0) < WORTH_IT or not onednn_is_faster():
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)


@functools.cache
def onednn_is_faster():
    return torch.backends.mkldnn.is_available() and cpu_name().startswith("AMD")


def onednn_linear(x, weight, bias=None):
    """`F.linear` computed by oneDNN, without autograd."""
    if not weight.is_contiguous():  # oneDNN transposes three times as fast as torch
        weight = weight.t().to_mkldnn().transpose(0, 1)
    return F.linear(x.contiguous().to_mkldnn(), weight, bias).to_dense()


class OneDNNLinear(torch.autograd.Function):
    """oneDNN computes the output and the input's gradient; MKL the weight's gradient, where oneDNN is not faster."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)  # (N, out)
        grad_x = onednn_linear(grad, weight.t()) if ctx.needs_input_grad[0] else None
        grad_weight = rows.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
