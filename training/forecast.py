"""What a run is expected to need, in words, for the banner and for `--dry_run`: tokens, passes over the data, memory.

Both print the same lines, with a warning where a run does not fit the machine or its data.
"""

from system.runtime import dtype_name
from system.words import format_count
from training import costs
from training.config import SYNTHETIC
from training.micro_batch import free_memory

MOST_EPOCHS = 20  # passes over the data after which a run mostly memorizes
FEWEST_STEPS = 100  # with fewer no model learns much: the batch is too large for the data


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
