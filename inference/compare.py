"""Where do two models part? Compared tensor by tensor, then stage by stage on the same ids, in the order of the forward
pass, so that the first stage named is the one with the fault: what comes after it can only inherit.

Anything with GPT-2's module names can be compared (`transformer.h[i].attn`, …): ours, `transformers`' own, or a port.
"""

from dataclasses import dataclass

import torch

from formats import weights
from formats.llmc import debug_state
from model import GPT
from system.errors import UserError

LISTED = 10  # differing tensors that are shown


def run_by_transformers(name):
    """The model in a folder (or called `name`) as `transformers` itself computes it, to compare ours with."""
    folder = weights.download(name) if name in weights.PRETRAINED else name
    with weights.quiet_transformers() as transformers:
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            )
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{name} could not be loaded by transformers ({str(error).splitlines()[0]})") from error
    if model.config.model_type != "gpt2":
        raise UserError(f"{name} is a {model.config.model_type}, expected a gpt2")
    return model.eval()


@dataclass(frozen=True)
class Gap:
    """How far two tensors of the same shape are apart."""

    name: str
    largest: float  # max |a - b|
    scale: float  # the largest absolute value in either
    index: tuple[int, ...]  # where they are farthest apart

    def parts(self, tolerance):
        return not self.largest <= tolerance * self.scale  # so put, NaN parts too

    def __str__(self):
        return f"{self.name:36}  max |Δ| {self.largest:.2e}  largest value {self.scale:.2e}"


def gap(name, a, b):
    if a.shape != b.shape:
        raise UserError(f"{name} has shape {tuple(a.shape)} in one model and {tuple(b.shape)} in the other")
    delta = (a - b).abs()
    index = torch.unravel_index(delta.argmax(), a.shape)
    largest, scale = delta.max().item(), max(a.abs().max().item(), b.abs().max().item())
    return Gap(name, largest, scale, tuple(i.item() for i in index))


def compare_tensors(a, b):
    """A `Gap` for each weight of two models, in the order of the forward pass."""
    a, b = named_weights(a), named_weights(b)
    alone = sorted(a.keys() ^ b.keys())
    if alone:
        raise UserError(f"{alone[0]} is in one model only: they have different shapes")
    return [gap(name, a[name], b[name]) for name in a]


def named_weights(model):
    """Weights under our names, in our orientation, the vocabulary without padding."""
    if isinstance(model, GPT):
        return weights.tensors_of(model)
    tensors = weights.from_hugging_face(model.state_dict())
    tensors.pop("lm_head.weight", None)
    return tensors


def compare_stages(a, b, idx):
    """A `Gap` for each stage of the forward pass of two models on idx (B, T)."""
    a, b = stages(a, idx), stages(b, idx)
    return [gap(name, a[name], b[name]) for name in a]


@torch.no_grad()
def stages(model, idx):
    """What each stage puts out for idx (B, T): {name: (B, T, C)}, and logits (B, T, vocab_size)."""
    found = {}

    def keep(name):
        return lambda module, args, output: found.update({name: first(output)})

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


def first(output):
    return output[0] if isinstance(output, tuple) else output


def weights_of_stage(stage):
    """The prefixes of the tensors that take part in a stage."""
    fixed = {"embeddings": ("wte", "wpe"), "final norm": ("ln_f",), "logits": ("wte",)}
    if stage in fixed:
        names = fixed[stage]
    else:
        _, i, part = stage.split()
        parts = {"attention": ("ln_1", "attn"), "MLP": ("ln_2", "mlp"), "output": ()}[part]
        names = [f"h.{i}.{name}" for name in parts]
    return tuple(f"transformer.{name}." for name in names)


def report(a, b, idx, tolerance):
    """(lines to print, whether the models part) of two models on idx (B, T).

    They part where a difference exceeds `tolerance` times the largest value of the tensor that it is in.
    """
    tensors, outputs = compare_tensors(a, b), compare_stages(a, b, idx)
    differing = [g for g in tensors if g.largest != 0]
    lines = [f"tensors: {len(differing)} of {len(tensors)} differ"]
    lines += [f"  {g} at {list(g.index)}" for g in differing[:LISTED]]
    if len(differing) > LISTED:
        lines.append(f"  … and {len(differing) - LISTED} more")
    lines.append(f"stages, on {idx.size(0)}×{idx.size(1)} ids:")
    lines += [f"  {g}{'  ← parts' if g.parts(tolerance) else ''}" for g in outputs]
    wrong = [g for g in tensors if g.parts(tolerance)]
    parted = next((g for g in outputs if g.parts(tolerance)), None)
    if parted:
        own = [g for g in wrong if g.name.startswith(weights_of_stage(parted.name))]
        cause = (
            f"its {own[0].name} differs at {list(own[0].index)}"
            if own
            else "its tensors agree, its computation differs"
        )
        lines.append(f"they first part at {parted.name}: {cause}")
    elif wrong:
        lines.append(f"they part at {wrong[0].name}{list(wrong[0].index)}, though no stage shows it on these ids")
    else:
        lines.append(f"they agree: every tensor and stage within {tolerance:g} of its largest value")
    return lines, bool(parted or wrong)


def report_state(model, state, tolerance):
    """The same for a model and a port's `DebugState`: logits, loss, then gradients as the backward pass makes them."""
    ours = debug_state(model, state.inputs, state.targets)
    gaps = [gap("logits", ours.logits, state.logits), gap("loss", ours.loss, state.loss)]
    gaps += [gap(name, ours.grads[name], state.grads[name]) for name in reversed(ours.grads)]
    parted = [g for g in gaps if g.parts(tolerance)]
    lines = [f"logits, loss and gradients, on {state.inputs.size(0)}×{state.inputs.size(1)} ids:"]
    lines += [f"  {g}{'  ← parts' if g in parted else ''}" for g in gaps]
    if parted:
        kind = "" if parted[0] in gaps[:2] else "the gradient of "
        lines.append(f"they first part at {kind}{parted[0].name}, at {list(parted[0].index)}")
    else:
        lines.append(f"they agree: logits, loss and every gradient within {tolerance:g} of its largest value")
    return lines, bool(parted)
