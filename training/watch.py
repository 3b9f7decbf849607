"""`--watch`: log how large the gradients and updates of each layer are, one stream per part of each block.

    grad/h.3.attn     norm of the gradient of block 3's attention, before clipping
    update/h.3.attn   norm of its change in this update, divided by the norm of its weights

The squares of all `grad/` streams add up to the square of `norm`.
"""

import contextlib

import torch
from torch.nn.utils import get_total_norm

from tracking.heat_map import GRADIENT, UPDATE
from training.parallel import FULL, local_part
from training.schedule import due


class Watch:
    """Measures updates every `log_interval` steps; does nothing without `--watch`."""

    def __init__(self, cfg, rt, model, log):
        self.cfg, self.rt, self.log = cfg, rt, log
        self.sharded = cfg.shard == FULL and rt.world_size > 1
        self.parts = parts_of(model) if cfg.watch and (rt.master or self.sharded) else {}

    @contextlib.contextmanager
    def update(self, step, norm):
        """Log the norms of the update that the block applies. `norm`: the gradient's, before clipping."""
        if not self.parts or not due(step, self.cfg.log_interval):
            yield
            return
        clipped = max(1.0, (norm + 1e-6) / self.cfg.grad_clip) if self.cfg.grad_clip else 1.0  # clipping divided by it
        weights = [[local_part(p.detach()).clone() for p in params] for params in self.parts.values()]
        gradients = [[local_part(p.grad) for p in params if p.grad is not None] for params in self.parts.values()]
        sizes = self.norms(gradients + weights)
        yield
        for copies, params in zip(weights, self.parts.values(), strict=True):
            for copy, p in zip(copies, params, strict=True):
                copy.sub_(local_part(p.detach()))
        norms = torch.cat((sizes, self.norms(weights))).view(3, -1).cpu()
        gradient, weight, change = norms.double()  # on the CPU, because mps has no float64
        if self.log is not None:
            self.write(step, GRADIENT, gradient * clipped)
            self.write(step, UPDATE, change / weight)

    def norms(self, groups):
        """The norm of each list of tensors, (n,), over all ranks."""
        norms = torch.stack([get_total_norm(tensors) for tensors in groups])
        return self.rt.sum(norms.square()).sqrt() if self.sharded else norms

    def write(self, step, prefix, values):
        self.log.write(step, **{prefix + part: value for part, value in zip(self.parts, values.tolist(), strict=True)})


def parts_of(model):
    """{part: parameters} of a GPT in the order of the forward pass; see `part_of`."""
    parts = {}
    for name, p in model.named_parameters():
        parts.setdefault(part_of(name), []).append(p)
    return parts


def part_of(name):
    """The part of the model that a parameter belongs to: transformer.h.3.ln_1.weight → h.3.ln, wte.weight → wte."""
    words = name.removeprefix("transformer.").split(".")
    if words[0] != "h":
        return words[0]
    return f"h.{words[1]}.{words[2].partition('_')[0]}"  # ln_1 and ln_2 are one part
