"""Which rule updates which parameter: AdamW for all, or Muon for the blocks' matrices and AdamW for the rest."""

import torch

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

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states):
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def build_optimizers(model, kind, max_lr, betas, eps, weight_decay):
    """`kind` is "adamw" or "muon"; one learning rate serves both.

    Muon orthogonalizes each matrix's momentum (Jordan 2024); `match_rms_adamw` scales its updates to the size that
    AdamW's have (Moonshot AI 2025, "Muon is Scalable for LLM Training", section 2.2). On small budgets it learns more
    a minute than AdamW does.
    """
    groups = model.optimizer_groups(weight_decay)
    if kind == ADAMW:
        return Optimizers(*build_adamw(groups, max_lr, betas, eps))
    matrices = [p for p in model.transformer.h.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [g | {"params": [p for p in g["params"] if id(p) not in taken]} for g in groups]
    muon = torch.optim.Muon(matrices, lr=max_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw, fused = build_adamw(rest, max_lr, betas, eps)
    return Optimizers([muon, *adamw], fused)


def build_adamw(groups, lr, betas, eps):
    """([AdamW], whether it is fused): torch knows where it has one kernel for the whole update, so we ask it."""
    try:
        return [torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)], True
    except RuntimeError:
        return [torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)], False
