"""Attention by blocks of queries is attention, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from model import GPTConfig
from ops.attention import SDPA_KERNELS, causal_attention, sdpa_kernel_name

pytestmark = pytest.mark.usefixtures("on_device")


def textbook(qkv, n_head):
    """Scores, mask, softmax, product, in float64, head by head."""
    T, C = qkv.size(1), qkv.size(2) // 3
    hs, future = C // n_head, torch.ones(T, T, dtype=torch.bool).triu(1)
    heads = []
    for h in range(n_head):
        q, k, v = (qkv[:, :, i * C + h * hs : i * C + (h + 1) * hs].double() for i in range(3))  # (B, T, hs)
        scores = (torch.einsum("bqc,bkc->bqk", q, k) / hs**0.5).masked_fill(future, float("-inf"))
        heads.append(torch.einsum("bqk,bkc->bqc", F.softmax(scores, -1), v))
    return torch.cat(heads, dim=2)


@pytest.mark.cpu
@pytest.mark.parametrize("T", [1, 63, 64, 200, 300, 512])  # one block, whole blocks, a last one that is shorter
def test_output_and_gradient_are_the_textbooks(T):
    torch.manual_seed(T)
    qkv = torch.randn(2, T, 3 * 48).bfloat16().requires_grad_()
    scale = torch.randn(2, T, 48).bfloat16()
    results = []
    for function in (textbook, causal_attention):
        y = function(qkv, 3)
        (grad,) = torch.autograd.grad(y, qkv, scale.to(y.dtype))
        results.append((y.double(), grad.double()))
    assert "BlockedAttention" in type(y.grad_fn).__name__
    for ours, expected in zip(results[1], results[0], strict=True):
        assert (ours - expected).norm() / expected.norm() < 0.01  # bfloat16 keeps 8 bits
        assert (ours - expected).abs().max() < 0.03 * expected.abs().max()


def test_other_formats_dropout_and_compilation_stay_with_sdpa():
    qkv = torch.randn(2, 64, 3 * 32, requires_grad=True)
    half = qkv.bfloat16()
    outputs = causal_attention(qkv, 2), causal_attention(half, 2, dropout_p=0.5)
    assert not any("BlockedAttention" in type(y.grad_fn).__name__ for y in outputs)
    compiled = []  # what torch.compile sees
    torch.compile(causal_attention, backend=lambda graph, inputs: compiled.append(graph.code) or graph)(half, 2)
    assert "scaled_dot_product_attention" in compiled[0]
    torch.testing.assert_close(outputs[0].double(), textbook(qkv, 2), rtol=1e-4, atol=1e-5)


def test_sdpa_kernel_name_is_of_the_kernel_that_runs(device):
    """Ask for float32 with and without Flash Attention."""
    config = GPTConfig(n_layer=1, n_head=2, n_embd=64)
    assert sdpa_kernel_name(config, 64, torch.float32, device) in SDPA_KERNELS.values()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert sdpa_kernel_name(config, 64, torch.float32, device) == "math"
