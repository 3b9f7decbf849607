"""The optimizers, and the table of them.

To add an optimizer, write a function like `adamw` and add it to `OPTIMIZERS`.
"""

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

from system.runtime import pick_dtype
from training import parallel
from training.muon import Muon


def adamw(model, cfg, shared=False):
    """AdamW for every parameter (Loshchilov & Hutter 2019)."""
    return [make_adamw(model.optimizer_groups(cfg.weight_decay), cfg, shared)]


def muon(model, cfg, shared=False):
    """Muon for the matrices of the blocks, AdamW for the rest, at `adamw_lr_scale` times Muon's learning rate."""
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    groups = model.optimizer_groups(cfg.weight_decay)
    scale = {"lr_scale": cfg.adamw_lr_scale}
    rest = [group | scale | {"params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
    settings = {
        "lr": cfg.max_lr,
        "weight_decay": cfg.weight_decay,
        "momentum": cfg.muon_momentum,
        "dtype": product_dtype(cfg, matrices[0].device),
    }
    return [make(Muon, matrices, shared, **settings), make_adamw(rest, cfg, shared)]


ADAMW, MUON = "adamw", "muon"
OPTIMIZERS = {ADAMW: adamw, MUON: muon}  # each: (model, cfg, shared) → torch optimizers


def product_dtype(cfg, device):
    """The number format of Muon's products: bfloat16 in a run in bfloat16, else float32."""
    return torch.bfloat16 if pick_dtype(cfg.dtype, device) == torch.bfloat16 else torch.float32


def make_adamw(groups, cfg, shared=False):
    """AdamW over parameter groups, as one fused kernel where torch has one for this device."""
    settings = {"lr": cfg.max_lr, "betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps}
    try:
        return make(torch.optim.AdamW, groups, shared, fused=True, **settings)
    except RuntimeError:  # torch refuses `fused` where it has no such kernel
        return make(torch.optim.AdamW, groups, shared, **settings)


def make(kind, params, shared, **settings):
    """A torch optimizer of class `kind`; if `shared`, each rank keeps and updates only its part (ZeRO stage 1)."""
    if shared:
        return ZeroRedundancyOptimizer(params, optimizer_class=kind, **settings)
    return kind(params, **settings)


class Optimizers:
    """One or more torch optimizers that step together."""

    def __init__(self, optimizers, keep_gradients=False):
        """`keep_gradients`: allocate the gradients now and never free them; see `compilation.keeps_gradients`."""
        self.optimizers, self.keep_gradients = optimizers, keep_gradients
        if keep_gradients:
            for p in self.parameters():
                p.grad = torch.zeros_like(p)

    def parameters(self):
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    @property
    def fused(self):
        """Whether AdamW runs as one kernel."""
        return any(optimizer.defaults.get("fused") for optimizer in self.optimizers)

    def set_lr(self, lr):
        """Set the learning rate of every group: `lr`, times the group's `lr_scale` if it has one."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)

    def unscale(self, scaler):
        """Divide the gradients by float16's scale; other formats have none."""
        for optimizer in self.optimizers:
            scaler.unscale_(optimizer)

    def step(self, scaler):
        for optimizer in self.optimizers:
            scaler.step(optimizer)

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=not self.keep_gradients)

    def state_dict(self, master=True):
        """One state dict per optimizer, complete on the master. Every rank must call it where the state is shared."""
        return [parallel.optimizer_state(optimizer, master) for optimizer in self.optimizers]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.optimizers, states, strict=True):
            parallel.load_optimizer_state(optimizer, state)
