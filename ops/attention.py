"""Causal self-attention, by the fastest implementation for the device.

Shapes: B rows, T positions, C = nh·hs channels in nh heads of size hs, S keys.
"""

import math

import torch
from torch.nn import functional as F


def split_heads(qkv, n_head):
    """Queries, keys and values side by side (B, T, 3C) → three views (B, nh, T, hs)."""
    B, T, C3 = qkv.shape
    return qkv.view(B, T, 3, n_head, C3 // (3 * n_head)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(y):
    """(B, nh, T, hs) → heads side by side again, (B, T, C)."""
    return y.transpose(1, 2).flatten(2)


def causal_attention(qkv, n_head, dropout_p=0.0):
    """Each position attends to itself and the positions before it: qkv (B, T, 3C) → (B, T, C).

    SDPA picks the best kernel of the device, except on CPUs in bfloat16: there its kernel takes two to four times as
    long as plain matrix products over blocks of queries (`BlockedAttention`; measured at T = 64 to 512).
    """
    plain_products = qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and dropout_p == 0
    if plain_products and not torch.compiler.is_compiling() and hasattr(torch, "_softmax_backward_data"):
        return BlockedAttention.apply(qkv, n_head)
    return sdpa_attention(qkv, n_head, dropout_p)


def sdpa_attention(qkv, n_head, dropout_p=0.0):
    """`causal_attention` by torch's scaled dot-product attention."""
    q, k, v = split_heads(qkv, n_head)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True))


def cached_attention(q, k, v, visible):
    """Queries (B, nh, T, hs) attend to keys (B, nh, S, hs) where the mask `visible` is true; None: causal."""
    if visible is None or q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None and q.size(2) > 1)
    scores = (q * q.size(3) ** -0.5) @ k.transpose(-2, -1)  # (B, nh, T, S); plain products, as in causal_attention
    return scores.masked_fill_(~visible, -math.inf).softmax(-1) @ v


SDPA_KERNELS = {0: "math", 1: "Flash Attention", 2: "memory-efficient", 3: "cuDNN"}  # torch.nn.attention.SDPBackend


def sdpa_kernel_name(config, T, dtype, device):
    """The kernel that SDPA chooses to train a model of shape `config` on T positions. "unknown" without the private
    function that answers it.

    Batches of several rows get the same kernel as this one row.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    if choose is None:
        return "unknown"
    qkv = torch.empty(1, T, 3 * config.n_embd, dtype=dtype, device=device, requires_grad=True)
    q, k, v = split_heads(qkv, config.n_head)
    return SDPA_KERNELS.get(choose(q, k, v, None, config.dropout, True), "unknown")


class BlockedAttention(torch.autograd.Function):
    """Attention in blocks of queries, each multiplied only with the keys that it may attend to.

    The backward pass is written out, because autograd would pad the gradients of each block's keys and values to all
    positions and copy them. `torch._softmax_backward_data` is private: without it `causal_attention` uses SDPA.
    """

    @staticmethod
    def forward(ctx, qkv, n_head):
        B, T, _ = qkv.shape
        heads = torch.stack(split_heads(qkv, n_head)).flatten(1, 2)  # (3, B·nh, T, hs)
        q, k, v = heads
        q.mul_(q.size(2) ** -0.5)
        y, all_probs = torch.empty_like(q), []
        for start, stop in blocks(T):
            scores = q[:, start:stop] @ k[:, :stop].mT  # (B·nh, stop - start, stop)
            scores[:, :, start:] += torch.full((stop - start, stop - start), -math.inf, dtype=q.dtype).triu(1)
            probs = scores.softmax(-1)
            torch.bmm(probs, v[:, :stop], out=y[:, start:stop])
            all_probs.append(probs)
        ctx.save_for_backward(heads, *all_probs)
        ctx.shape = B, T, n_head
        return merge_heads(y.unflatten(0, (B, n_head)))

    @staticmethod
    def backward(ctx, grad):
        (q, k, v), *all_probs = ctx.saved_tensors
        B, T, n_head = ctx.shape
        grad = grad.unflatten(2, (n_head, -1)).transpose(1, 2).flatten(0, 1)  # (B·nh, T, hs)
        grads = torch.empty(3, *q.shape, dtype=q.dtype)
        grad_q, grad_k, grad_v = grads
        for (start, stop), probs in reversed([*zip(blocks(T), all_probs, strict=True)]):
            add = int(stop < T)  # the loop starts at the last block, which covers all keys: it writes, the others add
            grad_y = grad[:, start:stop]
            grad_v[:, :stop].baddbmm_(probs.mT, grad_y, beta=add)
            grad_probs = grad_y @ v[:, :stop].mT
            grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, probs.dtype)
            torch.bmm(grad_scores, k[:, :stop], out=grad_q[:, start:stop])
            grad_k[:, :stop].baddbmm_(grad_scores.mT, q[:, start:stop], beta=add)  # q is already scaled
        grad_q.mul_(q.size(2) ** -0.5)
        return grads.view(3, B, n_head, T, -1).permute(1, 3, 0, 2, 4).flatten(2), None


def blocks(T):
    """[(start, stop)] of the query blocks: a quarter of the positions each, fastest at T = 256 and 512."""
    size = max(64, min(256, T // 4))
    return [(start, min(start + size, T)) for start in range(0, T, size)]
