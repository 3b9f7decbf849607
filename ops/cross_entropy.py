"""The cross-entropy of a language model's head, without a second copy of the logits.

For 2,048 tokens the logits over 50,304 ids take 0.2 GB in bfloat16; the plain computation (logits, a float32 copy, its
softmax, its gradient) stores and moves several times as much. On a CPU the logits are overwritten by their gradient, a
few rows at a time in float32 while those rows are in the cache. The matrix products are not split into chunks, because
one large product is faster.
"""

import math

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ops.linear import linear

IGNORE = -1  # targets with this value do not count in the loss
CHUNK = 1 << 20  # logits processed at once: 4 MB in float32


def head_loss(x, weight, targets, vocab_size, chunks=1):
    """Cross-entropy in nats of each row, float32 (N,), 0 where the target is -1.

    x: hidden states (N, C). weight: (padded vocabulary, C); rows from `vocab_size` on are ignored. targets: (N,).
    Matrix products run in the autocast format. With `chunks` the rows are processed in that many parts, whose logits
    are computed again in the backward pass: only those of one part are in memory.

    Unlike torch's `F.linear_cross_entropy` (from 2.13 on), the parts stay inside a compiled graph, and the padding of
    the vocabulary needs neither a bias nor a copy of the weights.
    """
    whole = cpu_loss if x.device.type == "cpu" else torch_loss
    if chunks == 1:
        return whole(x, weight, targets, vocab_size)
    if torch.compiler.is_compiling():  # torch 2.13 cannot trace the class of `cpu_loss` inside `checkpoint`
        whole = torch_loss
    parts = zip(x.chunk(chunks), targets.chunk(chunks), strict=True)
    # No random numbers are drawn, so no generator's state has to be kept.
    options = {"use_reentrant": False, "preserve_rng_state": False}
    return torch.cat([checkpoint(whole, part, weight, target, vocab_size, **options) for part, target in parts])


def torch_loss(x, weight, targets, vocab_size, mask_padding=False):
    """`head_loss` by torch's cross-entropy, which torch.compile fuses with the conversion to float32.

    Without `mask_padding` the logits of the padding are cut off, which leaves rows of odd width (50,257); with it they
    stay and are set to -inf. `python bench.py train` measures both.
    """
    logits = F.linear(x, weight)
    if mask_padding:
        padding = torch.arange(logits.size(1), device=logits.device) >= vocab_size
        logits = logits.masked_fill(padding, -math.inf)
    else:
        logits = logits[:, :vocab_size]
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="none")


def cpu_loss(x, weight, targets, vocab_size):
    return HeadLoss.apply(x, weight, targets, vocab_size, torch.is_grad_enabled())


class HeadLoss(torch.autograd.Function):
    """`head_loss` on a CPU: the forward pass stores the gradient of the logits in place of the logits."""

    @staticmethod
    def forward(ctx, x, weight, targets, vocab_size, wants_grad):
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        ctx.dtypes = x.dtype, weight.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        logits = linear(x, weight)  # (N, padded V)
        losses = torch.empty(len(x), dtype=torch.float32)
        rows = max(1, CHUNK // logits.size(1))
        for part, target, loss in zip(logits.split(rows), targets.split(rows), losses.split(rows), strict=True):
            part_logits = part[:, :vocab_size].float()  # (rows, V)
            probs = part_logits.softmax(dim=1)
            ignored = target == IGNORE
            index = target.clamp(min=0)[:, None]
            logit_gap = part_logits.amax(1) - part_logits.gather(1, index)[:, 0]  # largest logit - target's logit
            loss.copy_((logit_gap - probs.amax(1).log()).masked_fill_(ignored, 0.0))  # log p = log p_max - logit_gap
            if wants_grad:
                grad = probs.scatter_add_(1, index, torch.full(index.shape, -1.0))  # softmax - one-hot
                part[:, :vocab_size] = grad.masked_fill_(ignored[:, None], 0.0) if ignored.any() else grad
                part[:, vocab_size:] = 0.0
        if wants_grad:
            ctx.save_for_backward(x, weight, logits)
        return losses

    @staticmethod
    def backward(ctx, grad_losses):
        x, weight, grad_logits = ctx.saved_tensors
        scale = grad_losses[:, None].to(x.dtype)  # (N, 1): each row's scale is applied after the products
        with torch.autocast("cpu", enabled=False):
            grad_x = linear(grad_logits, weight.t()) * scale
            grad_weight = grad_logits.T @ (x * scale)
        return grad_x.to(ctx.dtypes[0]), grad_weight.to(ctx.dtypes[1]), None, None, None
