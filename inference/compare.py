"""Find where two models differ: tensor by tensor, then stage by stage in the order of the forward pass on the same ids.

The first stage that differs has the fault, because later stages inherit its error. Any model with GPT-2's module names
(`transformer.h[i].attn`, …) can be compared: ours, the one in `transformers`, or a port.
"""

from dataclasses import dataclass

import torch

from formats import hugging_face
from formats.llmc import DebugState
from formats.model_file import HEAD, WTE
from model import GPT
from system.boundary import foreign
from system.errors import UserError

MAX_LISTED = 10  # differing tensors in a report


def load_in_transformers(name):
    """The GPT-2 in a folder, or of a name in `PRETRAINED`, as the `transformers` library builds it. In eval mode."""
    folder = hugging_face.download(name) if name in hugging_face.PRETRAINED else name
    config = hugging_face.config_for_transformers(folder, name)
    with hugging_face.quiet_transformers() as transformers, foreign(name, "a GPT-2 that transformers loads"):
        model = transformers.GPT2LMHeadModel.from_pretrained(
            folder,
            config=transformers.GPT2Config(**config),
            dtype=torch.float32,
            attn_implementation="eager",
        )
    return model.eval()


@dataclass(frozen=True)
class Gap:
    """The largest difference between two tensors of the same shape."""

    name: str
    largest: float  # max |a - b|
    scale: float  # the largest absolute value in either
    index: tuple[int, ...]  # of the largest difference

    def exceeds(self, tolerance):
        return not self.largest <= tolerance * self.scale  # negated so that NaN counts as a difference

    def __str__(self):
        return f"{self.name:36}  max |Δ| {self.largest:.2e}  largest value {self.scale:.2e}"


def gap(name, a, b):
    """The `Gap` between two tensors. Raises `UserError` if their shapes differ."""
    if a.shape != b.shape:
        raise UserError(f"{name} has shape {tuple(a.shape)} in one model and {tuple(b.shape)} in the other")
    delta = (a - b).abs()
    index = torch.unravel_index(delta.argmax(), a.shape)
    largest, scale = delta.max().item(), max(a.abs().max().item(), b.abs().max().item())
    return Gap(name, largest, scale, tuple(i.item() for i in index))


def compare_tensors(a, b):
    """A `Gap` for each parameter of two models, in the order of the forward pass."""
    a, b = gpt2_tensors(a), gpt2_tensors(b)
    unmatched = sorted(a.keys() ^ b.keys())
    if unmatched:
        raise UserError(f"{unmatched[0]} is in one model only: the models have different shapes")
    return [gap(name, a[name], b[name]) for name in a]


def gpt2_tensors(model):
    """A model's parameters as in a `ModelFile`: GPT-2's names, nn.Linear's orientation, no padding, no tied head."""
    if isinstance(model, GPT):
        return model.to_tensors()
    tensors = hugging_face.to_gpt2(model.state_dict())
    tensors.pop(HEAD, None)
    return tensors


def compare_stages(a, b, idx):
    """A `Gap` for each stage of the forward pass of two models on idx (B, T)."""
    a, b = stage_outputs(a, idx), stage_outputs(b, idx)
    return [gap(name, a[name], b[name]) for name in a]


@torch.no_grad()
def stage_outputs(model, idx):
    """The output of each stage for idx (B, T): {name: (B, T, C)}, and "logits": (B, T, vocab_size)."""
    found = {}

    def keep(name):
        return lambda module, args, output: found.update({name: output[0] if isinstance(output, tuple) else output})

    transformer = model.transformer
    hooks = [transformer.h[0].register_forward_pre_hook(lambda module, args: found.update(embeddings=args[0]))]
    for i, block in enumerate(transformer.h):
        for module, name in ((block.attn, "attention"), (block.mlp, "MLP"), (block, "output")):
            hooks.append(module.register_forward_hook(keep(f"block {i} {name}")))
    hooks.append(transformer.ln_f.register_forward_hook(keep("final norm")))
    try:
        output = model(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return found | {"logits": getattr(output, "logits", output)}


def parameters_of_stage(stage):
    """The name prefixes of the parameters that a stage uses."""
    fixed = {"embeddings": ("wte", "wpe"), "final norm": ("ln_f",), "logits": ("wte",)}
    if stage in fixed:
        names = fixed[stage]
    else:
        _, i, part = stage.split()
        parts = {"attention": ("ln_1", "attn"), "MLP": ("ln_2", "mlp"), "output": ()}[part]
        names = [f"h.{i}.{name}" for name in parts]
    return tuple(f"transformer.{name}." for name in names)


def report_models(a, b, idx, tolerance):
    """Compare two models on idx (B, T). Returns (lines to print, whether they differ).

    Two tensors differ if a difference exceeds `tolerance` times the largest value in them.
    """
    tensors, stages = compare_tensors(a, b), compare_stages(a, b, idx)
    unequal = [g for g in tensors if g.largest != 0]
    lines = [f"tensors: {len(unequal)} of {len(tensors)} differ"]
    lines += [f"  {g} at {list(g.index)}" for g in unequal[:MAX_LISTED]]
    if len(unequal) > MAX_LISTED:
        lines.append(f"  … and {len(unequal) - MAX_LISTED} more")
    lines.append(f"stages, on {idx.size(0)}×{idx.size(1)} ids:")
    lines += gap_lines(stages, tolerance)
    wrong = [g for g in tensors if g.exceeds(tolerance)]
    first = next((g for g in stages if g.exceeds(tolerance)), None)
    if first:
        lines.append(f"the models first differ at {first.name}: {cause(first, wrong)}")
    elif wrong:
        lines.append(f"the models differ at {wrong[0].name}{list(wrong[0].index)}, but no stage does on these ids")
    else:
        lines.append(f"the models agree: every tensor and stage within {tolerance:g} of its largest value")
    return lines, bool(first or wrong)


def gap_lines(gaps, tolerance):
    return [f"  {g}  ← differs" if g.exceeds(tolerance) else f"  {g}" for g in gaps]


def cause(stage, wrong):
    """Why a stage differs: the first of its parameters that is among the `wrong` ones, or its computation."""
    own = [g for g in wrong if g.name.startswith(parameters_of_stage(stage.name))]
    if own:
        return f"its {own[0].name} differs at {list(own[0].index)}"
    return "its tensors agree, its computation differs"


def debug_state(model, inputs, targets):
    """The `DebugState` of a GPT on ids and targets, (B, T) each. Leaves no gradients in the model."""
    with torch.no_grad():
        logits = model(inputs)  # (B, T, vocab_size)
    model.zero_grad()
    loss = model(inputs, targets)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    grads[WTE] = grads[WTE][: model.config.vocab_size]
    model.zero_grad()
    return DebugState(inputs, targets, logits, loss.detach(), grads)


def report_debug_state(model, state, tolerance):
    """Compare a GPT with a port's `DebugState`: logits, loss, then gradients in the order of the backward pass.

    Returns (lines to print, whether they differ), as `report_models`.
    """
    ours = debug_state(model, state.inputs, state.targets)
    outputs = [gap("logits", ours.logits, state.logits), gap("loss", ours.loss, state.loss)]
    grads = [gap(name, ours.grads[name], state.grads[name]) for name in reversed(ours.grads)]
    lines = [f"logits, loss and gradients, on {state.inputs.size(0)}×{state.inputs.size(1)} ids:"]
    lines += gap_lines(outputs + grads, tolerance)
    first = next((g for g in outputs + grads if g.exceeds(tolerance)), None)
    if first is None:
        lines.append(f"the models agree: logits, loss and every gradient within {tolerance:g} of its largest value")
    else:
        name = f"the gradient of {first.name}" if first in grads else first.name
        lines.append(f"the models first differ at {name}, at {list(first.index)}")
    return lines, first is not None
