"""The head's loss equals the textbook's, and so do its gradients, in one piece and in chunks."""

import functools
import math

import pytest
import torch
from torch.nn import functional as F

from ops import cross_entropy

pytestmark = pytest.mark.usefixtures("on_device")


def textbook(x, weight, targets, vocab_size):
    logits = x.double() @ weight.double().T
    return F.cross_entropy(logits[:, :vocab_size], targets, ignore_index=-1, reduction="none")


@pytest.mark.parametrize(("V", "padded"), [(257, 384), (300, 300)])
@pytest.mark.parametrize(
    ("function", "chunk"),
    [
        (cross_entropy.head_loss, 1),
        (cross_entropy.head_loss, 1000),
        (cross_entropy.head_loss, 1 << 21),
        (functools.partial(cross_entropy.head_loss, chunks=7), 1000),  # 50 rows: the last chunk is shorter
        (functools.partial(cross_entropy.head_loss, chunks=64), 1000),  # more chunks than rows
        (cross_entropy.torch_loss, 1),
        (functools.partial(cross_entropy.torch_loss, mask_padding=True), 1),
    ],
)
def test_loss_and_gradients_equal_the_textbooks(monkeypatch, V, padded, function, chunk):
    monkeypatch.setattr(cross_entropy, "CHUNK", chunk)
    torch.manual_seed(0)
    x = torch.randn(50, 16, requires_grad=True)
    weight = torch.randn(padded, 16, requires_grad=True)
    targets = torch.randint(V, (50,))
    targets[::7] = -1
    scale = torch.rand(50)  # a different weight on each row's loss
    results = []
    for head_loss in (textbook, function):
        x.grad = weight.grad = None
        losses = head_loss(x, weight, targets, V)
        (losses * scale).sum().backward()
        results.append((losses.detach().float(), x.grad, weight.grad))
    for ours, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert results[1][2][V:].abs().max().item() == 0 if padded > V else True


def test_a_confident_prediction_keeps_its_small_loss():
    """Logits of exactly 200 and 193: the difference of two numbers near 200 would lose what there is."""
    x = torch.tensor([[200.0, 193.0, 0.0, 0.0]])
    (ours,) = cross_entropy.head_loss(x, torch.eye(4), torch.tensor([0]), 4)
    assert ours.item() == pytest.approx(math.log1p(math.exp(-7.0)), rel=1e-4)


def test_bfloat16_is_as_close_as_its_products_allow():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32), 0.1 * torch.randn(384, 32)
    targets = torch.randint(257, (64,))
    with torch.autocast(x.device.type, torch.bfloat16):
        ours = cross_entropy.head_loss(x, weight, targets, 257)
    assert ours.dtype == torch.float32
    rounded = textbook(x.bfloat16(), weight.bfloat16(), targets, 257)
    torch.testing.assert_close(ours, rounded.float(), rtol=0, atol=0.02)


def test_evaluation_computes_no_gradient_and_the_same_loss():
    torch.manual_seed(0)
    x, weight, targets = torch.randn(20, 8), torch.randn(384, 8), torch.randint(257, (20,))
    with torch.no_grad():
        quiet = cross_entropy.head_loss(x, weight, targets, 257)
    assert torch.equal(quiet, cross_entropy.head_loss(x.requires_grad_(), weight, targets, 257).detach())


@pytest.mark.cpu  # a GPU keeps 257 columns
@pytest.mark.parametrize(("chunks", "kept"), [(1, [384]), (8, [])])
def test_chunks_keep_no_logits_for_the_backward_pass(chunks, kept):
    x, weight, targets = torch.randn(64, 8), torch.randn(384, 8), torch.randint(257, (64,))
    widths = []  # of the tensors that are kept
    with torch.autograd.graph.saved_tensors_hooks(lambda t: widths.append(t.shape[-1]) or t, lambda t: t):
        cross_entropy.head_loss(x.requires_grad_(), weight, targets, 257, chunks)
    assert [width for width in widths if width in (257, 384)] == kept
