"""Which part of the model a profiled step spends its time in: embedding, attention, MLP, loss, backward, optimizer.

In an eager model hooks mark the parts of the forward pass. A compiled one is fused across them and counts as a whole:
hooks would make torch compile it again. Torch itself marks the backward pass and the optimizer's step.
"""

import contextlib

import torch
from torch.profiler import record_function

EMBEDDING, ATTENTION, MLP, LOSS = "embedding", "attention", "MLP", "head and loss"
COMPILED, BACKWARD, OPTIMIZER, COMMUNICATION = "forward, compiled", "backward", "optimizer", "communication"
PREFIXES = {  # of the names that torch gives to its own ranges
    "Torch-Compiled Region": COMPILED,
    "autograd::engine::evaluate_function": BACKWARD,
    "Optimizer.step#": OPTIMIZER,
    "nccl:": COMMUNICATION,
    "gloo:": COMMUNICATION,
    "c10d::": COMMUNICATION,
}
HOOKED = "part of GPT: "  # begins the names of our own ranges


@contextlib.contextmanager
def marked(model):
    """Mark the parts of the forward pass of a `GPT` for the profiler while the context lasts."""
    head_loss, handles = model.head_loss, mark(model.transformer.wte, EMBEDDING)
    for block in model.transformer.h:
        handles += mark(block.attn, ATTENTION) + mark(block.mlp, MLP)

    def marked_head_loss(*args, **kwargs):
        with record_function(HOOKED + LOSS):
            return head_loss(*args, **kwargs)

    model.head_loss = marked_head_loss
    try:
        yield
    finally:
        model.head_loss = head_loss
        for handle in handles:
            handle.remove()


def mark(module, name):
    """Put a module's forward pass into a range of the profiler. Returns the handles that remove it."""
    running = []

    def enter(module, args):
        running.append(record_function(HOOKED + name))
        running[-1].__enter__()

    def leave(module, args, output):
        running.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def part_of(name):
    """The part that a profiler's range belongs to by its name, or None."""
    if name.startswith(HOOKED):
        return name.removeprefix(HOOKED)
    return next((part for prefix, part in PREFIXES.items() if name.startswith(prefix)), None)


def milliseconds(profiler, on_gpu):
    """{part: ms}: the time on the GPU of the kernels that a part launched, or without a GPU its time on the CPU.

    Of nested ranges only the outermost counts, so that a block which is computed again in the backward pass counts as
    backward. Communication is counted by itself: during the backward pass it overlaps with computation.
    """
    total = {}
    for event in profiler.events():
        part = part_of(event.name)
        if part is None or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        if any(part_of(ancestor.name) for ancestor in ancestors(event)) and part != COMMUNICATION:
            continue
        time = event.device_time_total if on_gpu else event.cpu_time_total  # microseconds
        total[part] = total.get(part, 0.0) + time / 1000
    return total


def ancestors(event):
    while event.cpu_parent is not None:
        event = event.cpu_parent
        yield event


def table(times, flops, step_ms):
    """The lines of a table: each part's time and its share of the step, beside its share of the model's FLOPs.

    times: {part: ms}. flops: {part: FLOPs}, as `costs.flops_by_part` gives them. step_ms: the time of the whole step.
    """
    if COMPILED in times:
        flops = flops | {COMPILED: sum(flops[part] for part in (EMBEDDING, ATTENTION, MLP, LOSS))}
    total = sum(flops[part] for part in (EMBEDDING, ATTENTION, MLP, LOSS, BACKWARD))
    rest = step_ms - sum(ms for part, ms in times.items() if part != COMMUNICATION)
    lines = [f"{'part':20} {'ms':>10} {'time':>7} {'FLOPs':>7}"]
    for part, ms in [*times.items(), ("rest", max(0.0, rest))]:
        lines.append(f"{part:20} {ms:10,.2f} {ms / step_ms:7.1%} {flops.get(part, 0) / total:7.1%}")
    return lines
