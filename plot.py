"""Plot runs from their logs as a PNG: loss, learning rate and gradient norm, throughput.

python plot.py LOG_DIR ... [--out plot.png] [--x steps|tokens|hours]
"""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from configurator import configure
from errors import UserError, command
from files import AtomicFile
from runlog import path_of, read_log

# Okabe & Ito 2008: told apart by colour-blind people too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draw the curves of one or several runs on one set of axes."""

    log_dirs: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders of runs (each holds a log.txt)"""
    out: str | None = None
    """PNG to write; by default plot.png in the (first) folder"""
    x: Literal["steps", "tokens", "hours"] = "steps"
    """what the horizontal axis counts"""

    def check(self):
        if not self.log_dirs:
            raise UserError("no LOG_DIR given: python plot.py log/quickstart")
        for log_dir in self.log_dirs:
            if not path_of(log_dir).exists():
                raise UserError(f"{log_dir} holds no log.txt: expected the folder of a run")


def plot_runs(log_dirs, out, x="steps"):
    """Write a PNG of the runs in `log_dirs` to `out`. `x` is "steps", "tokens" or "hours" (of training alone)."""
    import matplotlib  # slow to import: a run that plots nothing doesn't wait for it

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for log_dir, color in zip(log_dirs, COLORS * len(log_dirs), strict=False):
        draw_run(axes.flat, Path(log_dir), color, x, label=Path(log_dir).name if len(log_dirs) > 1 else None)
    titles = ("loss (nats a token)", "learning rate", "gradient norm", "throughput (tokens/s)")
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel(x)
        axis.grid(alpha=0.3)
    axes.flat[0].legend()
    with AtomicFile(out) as f:
        figure.savefig(f, format="png", dpi=100)
    plt.close(figure)


def draw_run(axes, log_dir, color, x, label):
    loss, lr, norm, speed = axes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's warnings are for those who read the log, not for each plot
        log = read_log(log_dir)
    place = x_axis(log, log_dir, x)
    prefix = f"{label}: " if label else ""
    if "train" in log:
        steps, values = log["train"]
        loss.plot(place(steps), values, color=color, alpha=0.25, linewidth=0.8)
        loss.plot(place(steps), smooth(values), color=color, linewidth=1.5, label=f"{prefix}train, smoothed")
        loss.set_ylim(*loss_range(loss, values))
    if "val" in log:
        steps, values = log["val"]
        name = f"{prefix}validation, {values[-1]:.4f} at the end"
        loss.plot(place(steps), values, color=color, marker="o", markersize=4, linestyle="--", label=name)
    for axis, name in ((lr, "lr"), (norm, "norm"), (speed, "tok_per_sec")):
        if name in log:
            axis.plot(place(log[name].steps), log[name].values, color=color, linewidth=1, label=label)


def loss_range(axis, values):
    """Limits that leave out the first steps' fall, which would flatten all that follows; they only ever grow."""
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return axis.get_ylim()
    low, high = finite.min(), np.quantile(finite, 0.97)
    low, high = low - 0.05 * (high - low) - 0.01, high + 0.3 * (high - low) + 0.01
    if axis.has_data() and len(axis.lines) > 2:
        low, high = min(low, axis.get_ylim()[0]), max(high, axis.get_ylim()[1])
    return low, high


def smooth(values, weight=0.05):
    """Exponential moving average, without the pull towards 0 at its start."""
    average, total, smoothed = 0.0, 0.0, np.empty(len(values))
    for i, value in enumerate(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)):
        known = float(np.isfinite(values[i]))
        average, total = (1 - weight) * average + weight * value * known, (1 - weight) * total + weight * known
        smoothed[i] = average / total if total else np.nan
    return smoothed


def x_axis(log, log_dir, x):
    """A function from steps to places on the x axis."""
    if x == "steps":
        return lambda steps: steps
    if x == "tokens":
        config = json.loads((log_dir / "config.json").read_text(encoding="utf-8"))["config"]
        return lambda steps: steps * config["total_batch_size"]
    steps, dt_ms = log["dt_ms"]
    hours = np.concatenate([[0], np.cumsum(dt_ms) / 3.6e6])  # a step not logged counts as none
    return lambda wanted: hours[np.searchsorted(steps, wanted)]


@command
def main(argv=None):
    config = configure(PlotConfig, argv, positional="log_dirs")
    out = config.out or str(Path(config.log_dirs[0]) / "plot.png")
    plot_runs(config.log_dirs, out, config.x)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
