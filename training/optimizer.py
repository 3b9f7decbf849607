"""Which rule updates which parameter: AdamW for all, or Muon for the blocks' matrices and AdamW for the rest."""

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from training import parallel

ADAMW, MUON = "adamw", "muon"


class Optimizers:
    """One or two torch optimizers that step as one."""

    def __init__(self, optimizers, fused):
        self.optimizers = optimizers
        self.fused = fused  # whether AdamW is one kernel

    def set_lr(self, lr):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

    def step(self, scaler):
        """Apply the gradients, through the gradient scaler of float16 (which does nothing for other formats)."""
        for optimizer in self.optimizers:
            scaler.step(optimizer)

    def unscale(self, scaler):
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self, master=True):
        """Whole on the master, however it is shared; then all ranks must take part."""
        return [parallel.optimizer_state(optimizer, master) for optimizer in self.optimizers]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.optimizers, states, strict=True):
            parallel.load_optimizer_state(optimizer, state)


def build_optimizers(model, kind, max_lr, betas, eps, weight_decay, shared=False):
    """`kind` is "adamw" or "muon"; one learning rate serves both. If `shared`, ranks divide the state among them.

    Muon orthogonalizes each matrix's momentum (Jordan 2024); `match_rms_adamw` scales its updates to the size that
    AdamW's have (Moonshot AI 2025, "Muon is Scalable for LLM Training", section 2.2). On small budgets it learns more
    a minute than AdamW does.
    """
    groups = model.optimizer_groups(weight_decay)
    if kind == ADAMW:
        return Optimizers(*build_adamw(groups, max_lr, betas, eps, shared))
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [g | {"params": [p for p in g["params"] if id(p) not in taken]} for g in groups]
    settings = {"lr": max_lr, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    muon = make(torch.optim.Muon, matrices, shared, **settings)
    adamw, fused = build_adamw(rest, max_lr, betas, eps, shared)
    return Optimizers([muon, *adamw], fused)


def build_adamw(groups, lr, betas, eps, shared=False):
    """([AdamW], whether it is fused): torch knows where it has one kernel for the whole update, so we ask it."""
    try:
        return [make(torch.optim.AdamW, groups, shared, lr=lr, betas=betas, eps=eps, fused=True)], True
    except RuntimeError:
        return [make(torch.optim.AdamW, groups, shared, lr=lr, betas=betas, eps=eps)], False


def make(kind, params, shared, **settings):
    """A torch optimizer of class `kind`, of which, if `shared`, each rank updates its share of the parameters."""
    if shared:
        return ZeroRedundancyOptimizer(params, optimizer_class=kind, **settings)
    return kind(params, **settings)
