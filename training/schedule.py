"""Intervals (`due`), the learning rate and its schedules.

To add a schedule, write a function like `cosine` and add it to `SCHEDULES`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from tracking.runlog import MOST_STEPS


def due(step, interval):
    """Whether something that happens every `interval` steps (0: never) happens at `step`."""
    return interval > 0 and step % interval == 0


RATE_SETTINGS = ("schedule", "decay_steps", "max_lr", "min_lr", "warmup_steps", "max_steps")


def learning_rate(step, cfg):
    """Linear warm-up to max_lr, max_lr until the schedule's decay starts, the decay to min_lr, then min_lr.

    Of the settings, it depends on those in `RATE_SETTINGS` only.
    """
    if step < cfg.warmup_steps:
        return cfg.max_lr * (step + 1) / cfg.warmup_steps
    schedule = SCHEDULES[cfg.schedule]
    start, end = schedule.span(cfg)
    if step < start:
        return cfg.max_lr
    if step >= end:
        return cfg.min_lr
    progress = (step - start) / (end - start)  # 0 … 1
    return cfg.min_lr + schedule.shape(progress) * (cfg.max_lr - cfg.min_lr)


def planned_rates(settings, step, points=200):
    """(steps, learning rates) from `step` to the end of a run, by the settings in its config.json.

    Both are empty if these settings are of another version or damaged, or if the run is done.
    """
    try:
        cfg = SimpleNamespace(**{name: settings[name] for name in RATE_SETTINGS})
        left = cfg.max_steps - 1 - step if cfg.max_steps <= MOST_STEPS else 0
        steps = [step + left * i // points for i in range(points + 1)] if left > 0 else []
        return steps, [learning_rate(at, cfg) for at in steps]
    except (KeyError, TypeError, ArithmeticError, ValueError):
        return [], []


def most_different_step(cfg, other, steps):
    """The one of the first `steps` steps at which the learning rates of two configs differ most, of at most 1,000."""
    compared = [*range(0, steps, steps // 1000 + 1), steps - 1]
    return max(compared, key=lambda step: abs(learning_rate(step, cfg) - learning_rate(step, other)))


# The shapes: each maps the progress of the decay, 0 … 1, to the share of max_lr - min_lr that is left, 1 … 0.


def cosine(progress):
    """Half a cosine (GPT-3 paper, appendix B)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress):
    """A straight line (Bergsma et al. 2025, "Straight to Zero", recommend it with min_lr = 0)."""
    return 1 - progress


def one_minus_sqrt(progress):
    """Falls fast at first (Hägele et al. 2024, arXiv 2405.18392: as the end of a constant rate better than a line)."""
    return 1 - math.sqrt(progress)


# The spans: each returns the steps (start, end) of the decay; without `decay_steps` it ends at max_steps.


def after_warmup(cfg):
    """The decay begins after the warm-up."""
    if cfg.decay_steps is None:
        return cfg.warmup_steps, cfg.max_steps
    return cfg.warmup_steps, cfg.warmup_steps + cfg.decay_steps


def at_end(cfg):
    """The decay is the end of the run, by default a fifth of it (2405.18392; llm.c), and no part of the warm-up."""
    steps = max(1, cfg.max_steps // 5) if cfg.decay_steps is None else cfg.decay_steps
    return max(cfg.warmup_steps, cfg.max_steps - steps), cfg.max_steps


def never(cfg):
    """There is no decay."""
    return math.inf, math.inf


@dataclass(frozen=True)
class Schedule:
    """How the learning rate falls from max_lr to min_lr."""

    shape: Callable | None  # None: it does not fall
    span: Callable = after_warmup


WSD, CONSTANT = "wsd", "constant"
SCHEDULES = {
    "cosine": Schedule(cosine),
    "linear": Schedule(linear),
    WSD: Schedule(one_minus_sqrt, at_end),  # warm-up, stable, decay (Hu et al. 2024, MiniCPM, arXiv 2404.06395)
    CONSTANT: Schedule(None, never),
}
