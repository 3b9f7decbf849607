"""Muon: matrices are updated by their momentum, orthogonalized.

Jordan 2024, "Muon: An optimizer for hidden layers in neural networks". torch.optim.Muon takes each parameter as one
matrix. Here the query, key and value projections, which share one weight, are orthogonalized separately, and all
matrices of a shape in one batch.
"""

import math
from collections import defaultdict

import torch

CPU_ELEMENTS = 2**21  # of the matrices of a part


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of two dimensions."""

    def __init__(self, params, lr, weight_decay, momentum, dtype=torch.float32):
        """`dtype`: the number format of the products in `newton_schulz`, bfloat16 or float32."""
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        """Update all parameters that have a gradient. The gradients are overwritten."""
        for group in self.param_groups:
            batches = defaultdict(list)  # {(rows, cols): [(matrix, its direction), …]}
            for p in group["params"]:
                if p.grad is not None:
                    direction = self.nesterov_momentum(p, group["momentum"])
                    for pair in zip(matrices(p), matrices(direction), strict=True):
                        batches[pair[0].shape].append(pair)
            for batch in batches.values():
                for part in parts(batch):
                    self.update(part, group["lr"], group["weight_decay"])

    def nesterov_momentum(self, p, beta):
        """Advance the running mean of the gradients; return it as if the same gradient came once more (Nesterov)."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        mean = state["momentum_buffer"].lerp_(p.grad, 1 - beta)
        return p.grad.lerp_(mean, beta)

    def update(self, batch, lr, weight_decay):
        """Decay and update the matrices of a batch, [(matrix, its direction), …], all (rows, cols).

        An orthogonalized matrix has elements of root mean square 1 / √max(rows, cols). They are scaled to 0.2, about
        that of AdamW's updates, so that its learning rates and weight decays serve Muon too (Moonshot AI 2025, "Muon is
        Scalable for LLM Training", section 2.2).
        """
        directions = torch.stack([direction.to(self.dtype) for _, direction in batch])  # (n, rows, cols)
        scale = 0.2 * math.sqrt(max(directions.shape[1:]))
        for (matrix, _), direction in zip(batch, newton_schulz(directions), strict=True):
            matrix.mul_(1 - lr * weight_decay).add_(direction, alpha=-lr * scale)


def parts(batch):
    """The batch itself; on a CPU in parts of two matrices or more, so that the products of a part fit in its caches."""
    matrix = batch[0][0]
    size = max(2, CPU_ELEMENTS // matrix.numel()) if matrix.device.type == "cpu" else len(batch)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def matrices(weight):
    """The matrices that a weight consists of, as views, each turned so that rows ≤ cols.

    A weight (3C, C) is taken for GPT-2's projection to query, key and value: three matrices. Any other weight is one.
    """
    rows, cols = weight.shape
    if rows == 3 * cols:
        return weight.split(cols)
    return (weight.T,) if rows > cols else (weight,)


def newton_schulz(x, steps=5):
    """Orthogonalize matrices x (n, rows, cols), rows ≤ cols: replace their singular values by values near 1.

    Each step applies s → 3.4445·s - 4.7750·s³ + 2.0315·s⁵ to the singular values. These coefficients raise small ones
    fast and leave all between about 0.7 and 1.2 (Jordan 2024).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # the Frobenius norm is at least the largest of them
    for _ in range(steps):
        gram = x @ x.mT  # (n, rows, rows)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
