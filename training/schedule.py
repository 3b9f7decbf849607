"""Intervals (`due`), the learning rate and its schedules."""

import math


def due(step, interval):
    """Whether something that happens every `interval` steps (0: never) happens at `step`."""
    return interval > 0 and step % interval == 0


def learning_rate(step, cfg):
    """Linear warm-up to max_lr, then the schedule's decay to min_lr at max_steps, then min_lr."""
    if step < cfg.warmup_steps:
        return cfg.max_lr * (step + 1) / cfg.warmup_steps
    if step >= cfg.max_steps:
        return cfg.min_lr
    progress = (step - cfg.warmup_steps) / (cfg.max_steps - cfg.warmup_steps)  # 0 … 1
    return cfg.min_lr + SCHEDULES[cfg.schedule](progress) * (cfg.max_lr - cfg.min_lr)


def cosine(progress):
    """Half a cosine (GPT-3 paper, appendix B)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress):
    """A straight line (Bergsma et al. 2025, "Straight to Zero", recommend it with min_lr = 0)."""
    return 1 - progress


# Each maps the progress after the warm-up, 0 … 1, to the share of max_lr - min_lr that is left, 1 … 0.
SCHEDULES = {"cosine": cosine, "linear": linear}
