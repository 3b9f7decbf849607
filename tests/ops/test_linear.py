"""A float32 product by oneDNN is the plain product, forward and backward."""

import pytest
import torch
from torch.nn import functional as F

from ops import linear as linear_file
from ops.linear import linear

pytestmark = pytest.mark.cpu


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("bias", [True, False])
def test_onednns_product_and_gradients_are_the_plain_ones(monkeypatch, bias):
    monkeypatch.setattr(linear_file, "WORTH_IT", 0)
    monkeypatch.setattr(linear_file, "onednn_is_faster", lambda: True)
    torch.manual_seed(0)
    x = torch.randn(3, 20, 24, requires_grad=True)
    weight = torch.randn(40, 24, requires_grad=True)
    offset = torch.randn(40, requires_grad=True) if bias else None
    inputs = [t for t in (x, weight, offset) if t is not None]
    scale = torch.randn(3, 20, 40)
    expected, ours = F.linear(x, weight, offset), linear(x, weight, offset)
    assert "OneDNN" in type(ours.grad_fn).__name__
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for grads in zip(*(torch.autograd.grad(out, inputs, scale) for out in (ours, expected)), strict=True):
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_transposed_weight_may_be_given(monkeypatch):
    monkeypatch.setattr(linear_file, "WORTH_IT", 0)
    monkeypatch.setattr(linear_file, "onednn_is_faster", lambda: True)
    x, weight = torch.randn(30, 24), torch.randn(24, 40)
    torch.testing.assert_close(linear(x, weight.t()), x @ weight, rtol=1e-5, atol=1e-5)


def test_autocast_and_small_products_stay_with_torch():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(16, 8)
    assert "OneDNN" not in type(linear(x, weight).grad_fn).__name__
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
