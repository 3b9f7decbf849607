"""What every scorer needs: rows batched by length, and the losses of tokens without all logits in memory at once."""

import torch

from ops.cross_entropy import IGNORE

LOGITS_AT_ONCE = 256  # positions whose logits are in memory together: 50 MB in float32 with GPT-2's vocabulary
CPU_ROWS = 16  # of them in float32 at a time on a CPU: 3 MB, which stay in its cache


def default_batch_tokens(device):
    """Tokens per forward pass: few enough for a CPU's caches; elsewhere enough to use all units of the device."""
    return 2048 if device.type == "cpu" else 16384


def group_by_length(lengths, batch_tokens):
    """Lists of row numbers, longest rows first: each one row, or rows of at most `batch_tokens` tokens with padding."""
    groups = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > batch_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def token_losses(gpt, x, targets, most_probable=None):
    """Losses in nats, float32 (M, E), of E alternative next tokens at each of M positions; 0 where a target is IGNORE.

    x: final hidden states (M, C). targets: ids (M, E). The logits are float32, whatever dtype the products use.
    `most_probable`, boolean (M, E), is filled with whether no id is more probable than the target.
    """
    losses = torch.empty(targets.shape, device=x.device)
    rows = CPU_ROWS if x.device.type == "cpu" else LOGITS_AT_ONCE
    for start in range(0, len(x), LOGITS_AT_ONCE):
        stop = min(start + LOGITS_AT_ONCE, len(x))
        products = gpt.logits(x[start:stop])  # (m, V)
        for offset in range(0, stop - start, rows):
            part = slice(start + offset, min(start + offset + rows, stop))
            logits, target = products[offset : offset + rows].float(), targets[part]
            logit = logits.gather(1, target.clamp(min=0))
            losses[part] = (logits.logsumexp(1, keepdim=True) - logit).masked_fill(target == IGNORE, 0)
            if most_probable is not None:
                most_probable[part] = logit == logits.amax(1, keepdim=True)
    return losses
