"""What a run is expected to do and need, in words: tokens, passes over the data, learning rate, memory.

The banner and `--dry_run` print the same lines, with a warning where a run does not fit its settings, data or machine.
"""

from system.runtime import dtype_name
from system.words import format_count
from training import costs
from training.config import SYNTHETIC
from training.micro_batch import free_memory
from training.schedule import SCHEDULES, learning_rate

MOST_EPOCHS = 20  # passes over the data after which a run mostly memorizes
FEWEST_STEPS = 100  # with fewer no model learns much: the batch is too large for the data
BARS = "▁▂▃▄▅▆▇█"  # of `rate_chart`, from 0 to max_lr


def step_line(cfg, world_size):
    """One line: the tokens of a step and how they are divided."""
    accumulated = cfg.total_batch_size // (cfg.B * cfg.T * world_size)
    return (
        f"tokens a step: {cfg.total_batch_size:,} = B {cfg.B} x T {cfg.T} x {format_count(world_size, 'rank')} x"
        f" grad_accum_steps {accumulated}"
    )


def epoch_lines(cfg, windows):
    """How often the run reads its `windows` of T training tokens, with a warning if that is too often to learn."""
    if cfg.data_dir == SYNTHETIC:
        return ["epochs: many, of a few kB of synthetic data"]
    tokens = windows * cfg.T
    epochs = cfg.max_steps * cfg.total_batch_size / tokens
    lines = [f"epochs: {epochs:,.2f} of the {windows:,} windows of {cfg.T} tokens in {cfg.data_dir}"]
    if epochs > MOST_EPOCHS and not cfg.overfit_batch:
        steps = max(1, MOST_EPOCHS * tokens // cfg.total_batch_size)
        recipe = "" if steps >= FEWEST_STEPS else "; config/own_text.py is a recipe for little text"
        lines.append(
            f"warning: the run reads its {tokens:,} training tokens {epochs:,.0f} times and will memorize them: prepare"
            f" more text, or read them {MOST_EPOCHS} times with --max_steps {steps}{recipe}"
        )
    return lines


def schedule_lines(cfg):
    """The course of the learning rate, with a warning if the run ends before the warm-up or the decay does."""
    lines = ["learning rate: " + ", ".join(rate_phases(cfg))]
    left = cfg.max_steps - cfg.warmup_steps
    if left <= 0:
        lines.append(
            f"warning: the run never leaves the warm-up: warmup_steps = {cfg.warmup_steps}, but max_steps ="
            f" {cfg.max_steps}: lower --warmup_steps or raise --max_steps"
        )
    elif cfg.decay_steps is not None and cfg.decay_steps > left:
        lines.append(
            f"warning: decay_steps = {cfg.decay_steps}, but only {left} steps follow the warm-up: lower --decay_steps"
            " or raise --max_steps"
        )
    return lines


def rate_phases(cfg):
    """What the learning rate does, one phase after the other."""
    warmup = min(cfg.warmup_steps, cfg.max_steps)
    if warmup:
        phases = [f"rises to {learning_rate(warmup - 1, cfg):.2e} in {format_count(warmup, 'step')}"]
    else:
        phases = [f"starts at {cfg.max_lr:.2e}"]
    start, end = (min(step, cfg.max_steps) for step in SCHEDULES[cfg.schedule].span(cfg))
    if start > warmup:
        phases.append(f"stays there until step {start:,}")
    if start < end:
        phases.append(f"falls ({cfg.schedule}) to {learning_rate(end, cfg):.2e} at step {end:,}")
    if warmup < end < cfg.max_steps:
        phases.append(f"stays there until step {cfg.max_steps:,}")
    return phases


def rate_chart(cfg, columns=60):
    """The learning rate over the steps of the run as a line of bars, the highest for max_lr."""
    steps = [column * (cfg.max_steps - 1) // (columns - 1) for column in range(columns)]
    shares = [learning_rate(step, cfg) / max(cfg.max_lr, 1e-30) for step in steps]
    return "  " + "".join(BARS[round(share * (len(BARS) - 1))] for share in shares)


def memory_lines(config, cfg, dtype, device, world_size, built=False):
    """The expected memory of one rank on `device`, with a warning if less is free. `built`: the model exists already.

    `config` is the model's shape. On a device that is not on this machine (None) it is that of a GPU, without warning.
    """
    device_type = "cuda" if device is None else device.type
    memory = costs.rank_memory(config, cfg, cfg.B, dtype, device_type, world_size)
    where = f"on a GPU in {dtype_name(dtype)}" if device is None else f"on {device.type} in {dtype_name(dtype)}"
    lines = [f"expected memory: {memory.total / 1e9:.2f} GB a device {where} ({memory.parts()})"]
    if device is None:
        return lines
    free = free_memory(device) + (memory.parameters if built else 0)
    if memory.total > free:
        lines.append(
            f"warning: expected memory of {memory.total / 1e9:.2f} GB, but {free / 1e9:.2f} GB are free on {device}:"
            f" lower --B (now {cfg.B}; an update takes the same tokens), or choose a smaller model, such as that of"
            " config/own_text.py"
        )
    return lines
