"""What broke a step whose update was rejected: its first tensor that is not finite, or its largest change.

The step is computed again, eagerly, with hooks. Its batches, its dropout and, as nothing was updated, its weights are
the same. Each rank computes its own micro-batches; the ranks then combine what they found.
"""

import contextlib
import math
from typing import NamedTuple

import torch

from system.words import format_count
from training.evaluation import harmless
from training.parallel import whole_model

LOSS = "the loss"
SUM_OVERFLOWS = 1e15  # gradients larger than this may have a norm above the largest float32, 3.4e38
GROWTH = 2.0  # a gradient norm this many times that of other batches is caused by the step's own batches
EARLIER = "continue from an earlier checkpoint with a lower max_lr (now {:g}) or more warmup_steps"


class Extent(NamedTuple):
    """The size of a tensor's values; of several tensors, the maximum of each field."""

    largest: float  # absolute value, of the finite ones
    norm: float  # of the finite ones
    has_inf: float  # 1 or 0
    has_nan: float

    @property
    def finite(self):
        return not (self.has_inf or self.has_nan)

    @property
    def kind(self):
        return "NaN" if self.has_nan else "inf"


class Replay(NamedTuple):
    """A step that was computed again: the largest `Extent` of each tensor over micro-batches and ranks."""

    forward: dict[str, Extent]  # inputs and outputs of modules in the order of the computation, then the loss
    gradients: dict[str, Extent]  # by parameter, in the order of the forward pass


def diagnose(run, loss, norm):
    """Print what broke the current step, if it is the first of its streak. Every rank must call it.

    Nothing that training depends on changes: gradients are returned instead of accumulated, the loader's position stays
    and the next step seeds the random numbers.
    """
    if run.update_filter.rejected != 1:
        return
    with run.progress.paused(), harmless(run, "the diagnosis"):
        for line in explain(run, math.isfinite(loss) and math.isfinite(norm)):
            run.rt.print(f"step {run.state.step}: {line}")


def explain(run, outlier):
    """The lines that explain the current step. `outlier`: its loss and gradient norm were finite."""
    model = whole_model(run.model, run.rt)
    broken = {name: (~p.isfinite()).sum().item() for name, p in model.named_parameters() if not p.isfinite().all()}
    if broken:
        return explain_weights(run, broken)
    start = run.loader.position - run.loader.windows_per_step
    again = replay(run, model, start)
    if not all(extent.finite for extent in again.forward.values()):
        return explain_forward(run, again)
    if not all(extent.finite for extent in again.gradients.values()):
        return explain_backward(again)
    if not outlier:
        return explain_finite(run, again)
    start -= run.loader.windows_per_step
    return explain_outlier(run, again, replay(run, model, start) if start >= 0 else None)


def replay(run, model, position):
    """Compute the step that begins at window `position` at the current weights. Every rank must call it."""
    measured, error = {}, None
    try:
        measured = measure_step(run, model, position)
    except Exception as caught:  # the other ranks must not wait for this one
        error = caught
    if run.rt.max(torch.tensor(float(error is not None), device=run.rt.device)).item():
        raise error or RuntimeError("on another rank")
    rows = run.rt.max(torch.stack(list(measured.values()))).tolist()
    extents = {name: Extent(*row) for name, row in zip(measured, rows, strict=True)}
    names = dict(model.named_parameters())
    forward = {name: extent for name, extent in extents.items() if name not in names}
    return Replay(forward, {name: extents[name] for name in names if name in extents})


def measure_step(run, model, position):
    """{name: extent (4,)} of this rank's activations and gradients in the step that begins at window `position`."""
    rt = run.rt
    params = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rt.seed_step(run.cfg.seed, run.state.step)
    total = {}
    for x, y, divisor in run.loader.step_at(position):
        with record_activations(model) as measured, rt.autocast():
            loss = model(rt.to_device(x), rt.to_device(y))
        measured[LOSS] = measure(loss)
        gradients = torch.autograd.grad(run.scaler.scale(loss / divisor), params.values())
        measured |= {name: measure(gradient) for name, gradient in zip(params, gradients, strict=True)}
        total = {name: torch.maximum(row, total.get(name, row)) for name, row in measured.items()}
    return total


@contextlib.contextmanager
def record_activations(model):
    """Yield a dict that receives {name: extent (4,)} of what modules take and return while the context lasts."""
    measured, handles = {}, []

    def hook(name):
        def record(module, args, output):
            if not list(module.children()) and has_values(args[0]):
                measured[f"the input of {name}"] = measure(args[0])
            if has_values(output):
                measured[f"the output of {name}"] = measure(output)

        return record

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_hook(hook(name)))
    try:
        yield measured
    finally:
        for handle in handles:
            handle.remove()


def has_values(value):
    """Whether `value` is a tensor of numbers that may overflow: not of ids, and no tuple as some modules return."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def measure(tensor):
    """The fields of the `Extent` of a tensor, float32 (4,), without waiting for the device."""
    values = tensor.detach().float()
    finite = values.nan_to_num(0.0, 0.0, 0.0)
    flags = values.isinf().any().float(), values.isnan().any().float()
    return torch.stack((finite.abs().max(), finite.norm(), *flags))


def explain_weights(run, broken):
    name, count = next(iter(broken.items()))
    total = run.model.get_parameter(name).numel()
    others = f", and {format_count(len(broken) - 1, 'other tensor')}" if len(broken) > 1 else ""
    if run.state.step == run.start_step:
        reason = "they were loaded so: use an earlier checkpoint, or another --init_from"
    else:
        reason = "an earlier update made them so: " + EARLIER.format(run.cfg.max_lr)
    return [f"{name} already holds values that are not finite ({count:,} of {total:,}){others}", reason]


def explain_forward(run, again):
    names = list(again.forward)
    first = next(i for i, name in enumerate(names) if not again.forward[name].finite)
    lines = [
        f"computed again, the first tensor that is not finite is {names[first]}: {again.forward[names[first]].kind}"
    ]
    if first:
        lines.append("before it, " + largest_of({name: again.forward[name] for name in names[:first]}))
    if run.rt.dtype == torch.float16:
        return [*lines, "float16 ends at 65504: use --dtype bfloat16 or float32, or a lower max_lr"]
    return [
        *lines,
        "the weights are finite: that module computes something undefined, like 0/0, or they have grown too large: "
        + EARLIER.format(run.cfg.max_lr),
    ]


def explain_backward(again):
    """The backward pass goes from the loss to the first layer, so the last gradient that is not finite came first."""
    name = [name for name, extent in again.gradients.items() if not extent.finite][-1]
    return [
        f"computed again, the forward pass is finite: {largest_of(again.forward)}",
        f"backwards from the loss, the first gradient that is not finite is that of {name}:"
        f" {again.gradients[name].kind}",
        "docs/troubleshooting.md says how torch names the operation; --dtype float32 shows whether rounding matters",
    ]


def explain_finite(run, again):
    largest = largest_of(again.gradients)
    if max(extent.largest for extent in again.gradients.values()) > SUM_OVERFLOWS:
        return [
            f"computed again, the gradient is finite, but its norm overflows: {largest}",
            EARLIER.format(run.cfg.max_lr),
        ]
    if run.cfg.compiles(run.rt.device.type):
        advice = "the step was compiled, this was not: try --no-compile"
    else:
        advice = "a fault of the hardware, or an operation with other results each time: see --deterministic"
    return [f"computed again, loss and gradient are finite: {largest}", advice]


def explain_outlier(run, again, before):
    if before is None:
        return [f"computed again: {largest_of(again.gradients)}"]
    growth = {name: extent.norm - before.gradients[name].norm for name, extent in again.gradients.items()}
    name = max(growth, key=growth.get)
    norms = again.gradients[name].norm, before.gradients[name].norm
    if norms[0] >= GROWTH * norms[1]:
        advice = "the batches of this step are unusual: skipping them is enough, unless it happens often"
    else:
        advice = "other batches give the same: the weights have changed; " + EARLIER.format(run.cfg.max_lr)
    return [
        f"computed again, a micro-batch has a loss of up to {again.forward[LOSS].largest:.4f}, and of"
        f" {before.forward[LOSS].largest:.4f} with the batches of the step before",
        f"the gradient that grew most is that of {name}: its norm is {norms[0]:.2g}, and {norms[1]:.2g} with those"
        " batches",
        advice,
    ]


def largest_of(extents):
    """Words for the largest value of {name: Extent}."""
    name = max(extents, key=lambda name: extents[name].largest)
    return f"the largest value is {extents[name].largest:.2g}, in {name}"
