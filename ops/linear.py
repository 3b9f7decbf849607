"""Linear layers as fast as the processor allows in float32.

Torch sends float32 products on a CPU to MKL, which on AMD's processors uses half of their vector width; oneDNN, which
torch brings too, uses all of it. A tensor in oneDNN's layout goes there by the same `F.linear`. In bfloat16, and on any
other device, torch already picks the best.
"""

import functools

import torch
from torch.nn import functional as F

from system.runtime import cpu_name

WORTH_IT = 1 << 26  # multiplications, below which changing the layout costs more than it gains


def linear(x, weight, bias=None):
    """x (…, in) · weight (out, in) transposed + bias (out,) → (…, out): `F.linear`, by oneDNN where that is faster."""
    plain = torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling() or x.dtype != torch.float32
    if plain or x.device.type != "cpu" or x.numel() * weight.size(0) < WORTH_IT or not onednn_is_faster():
        return F.linear(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias)


@functools.cache
def onednn_is_faster():
    return torch.backends.mkldnn.is_available() and cpu_name().startswith("AMD")


def onednn_linear(x, weight, bias=None):
    """`F.linear` through oneDNN, without a gradient."""
    if not weight.is_contiguous():  # oneDNN transposes in a third of torch's time
        weight = weight.t().to_mkldnn().transpose(0, 1)
    return F.linear(x.contiguous().to_mkldnn(), weight, bias).to_dense()


class OneDNNLinear(torch.autograd.Function):
    """Output and input's gradient by oneDNN; the weight's gradient by MKL, since oneDNN gains nothing there."""

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
