"""Plot runs from their logs as a PNG: loss, HellaSwag, learning rate, gradient norm and throughput.

python plot.py LOG_DIR ... [--out plot.png] [--x steps|tokens|hours]
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from configurator import configure
from system.errors import UserError, command
from system.files import AtomicFile
from tracking import published
from tracking.runlog import path_of, read_config, read_log

# Okabe & Ito 2008: told apart by colour-blind people too (less its yellow, too faint on white). Runs that share a
# colour differ in their marker, and each curve of the loss bears its run's name at its end.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv"
GRAY = "#666666"
LABEL_PT = 8.5  # size of the labels
X_TITLES = {"steps": "steps", "tokens": "tokens", "hours": "hours of training"}


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draw the curves of one or several runs on one set of axes."""

    log_dirs: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders of runs (each holds a log.txt)"""
    out: str | None = None
    """PNG to write; by default plot.png in the (first) folder"""
    x: Literal["steps", "tokens", "hours"] = "steps"
    """what the horizontal axis counts; hours are those of the steps alone"""

    def check(self):
        if not self.log_dirs:
            raise UserError("no LOG_DIR given: python plot.py log/quickstart")
        for log_dir in self.log_dirs:
            if not path_of(log_dir).is_file():
                raise UserError(f"{log_dir} holds no log.txt: expected the folder of a run")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it is drawn."""

    name: str
    log: dict  # its streams
    record: dict  # its config.json
    x: object  # function from steps (n,) to places on the x axis (n,)
    color: str
    marker: str

    def points(self, stream):
        """(x, y) of a stream, or two empty arrays."""
        if stream not in self.log:
            return np.empty(0), np.empty(0)
        steps, values = self.log[stream]
        return self.x(steps), values


def plot_runs(log_dirs, out, x="steps"):
    """Write a PNG of the runs in `log_dirs` to `out`; see `draw_runs`."""
    figure = draw_runs(log_dirs, x)
    with AtomicFile(out) as f:
        figure.savefig(f, format="png", dpi=100)


def draw_runs(log_dirs, x="steps"):
    """A matplotlib `Figure` of the runs. `x` is "steps", "tokens" or "hours" (of training alone).

    Raises `UserError` where a log lacks what `x` needs.
    """
    from matplotlib.figure import Figure  # slow to import: a run that plots nothing doesn't wait for it

    runs = [open_run(*item, x) for item in zip(log_dirs, short_names(log_dirs), range(len(log_dirs)), strict=True)]
    panels = {"loss": draw_loss, "hella": draw_hellaswag, "lr": draw_lr, "norm": draw_norm, "speed": draw_speed}
    upper = ["loss", "loss", "hella"] if any("hella" in run.log for run in runs) else ["loss"]
    figure = Figure(figsize=(14, 9), layout="constrained")
    halves = figure.subfigures(2, 1, height_ratios=(3, 2))
    axes = halves[0].subplot_mosaic([upper]) | halves[1].subplot_mosaic([["lr", "norm", "speed"]])
    figure.suptitle(runs[0].name + describe(runs[0].record) if len(runs) == 1 else f"{len(runs)} runs", fontsize=12)
    for name, axis in axes.items():
        axis.set_xlabel(X_TITLES[x])
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        panels[name](axis, runs)
    return figure


def open_run(log_dir, name, number, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's warnings are for those who read the log, not for each plot
        log = read_log(log_dir)
    record = read_config(log_dir)
    marker = MARKERS[number // len(COLORS) % len(MARKERS)]
    return Run(name, log, record, x_axis(log_dir, log, record, x), COLORS[number % len(COLORS)], marker)


def short_names(log_dirs):
    """For each folder the end of its path that tells it from the others."""
    paths = [Path(log_dir).resolve().parts for log_dir in log_dirs]
    if len(set(paths)) < len(paths):
        raise UserError(f"the same LOG_DIR is given twice: {' '.join(map(str, log_dirs))}")
    names = []
    for path in paths:
        length = next(n for n in range(1, len(path) + 1) if sum(path[-n:] == other[-n:] for other in paths) == 1)
        names.append("/".join(path[-length:]))
    return names


def describe(record):
    """A run's main settings in a line."""
    config, model = record.get("config", {}), record.get("model", {})
    parts = []
    if model:
        parts.append(f"{model['parameters'] / 1e6:,.1f}M parameters, {model['n_layer']} layers of {model['n_embd']}")
    if config:
        parts.append(f"{config['total_batch_size']:,} tokens a step, {config['optimizer']} at {config['max_lr']:g}")
    return "".join(" · " + part for part in parts)


def x_axis(log_dir, log, record, x):
    """A function from steps to places on the x axis."""
    if x == "steps":
        return lambda steps: steps
    if x == "tokens":
        if "config" not in record:
            raise UserError(f"{log_dir} holds no config.json that tells how many tokens a step has: use --x steps")
        return lambda steps: steps * record["config"]["total_batch_size"]
    if "dt_ms" not in log:
        raise UserError(f"{log_dir}/log.txt has no stream dt_ms, so its hours are unknown: use --x steps")
    steps, dt_ms = log["dt_ms"]
    took = dt_ms * np.diff(steps, prepend=-1)  # steps between two lines took as long as the one that was logged
    done, hours = np.append(0, steps + 1), np.append(0, np.cumsum(took) / 3.6e6)
    return lambda wanted: np.interp(wanted, done, hours)


def draw_loss(axis, runs):
    """Training loss, raw and smoothed, and validation loss."""
    labels, highest, lowest = [], [], []
    for run in runs:
        x, loss = run.points("train")
        smoothed = smooth(loss)
        axis.plot(x, loss, color=run.color, alpha=0.25, linewidth=0.8)
        axis.plot(x, smoothed, color=run.color, linewidth=1.6)
        at, val = run.points("val")
        axis.plot(at, val, color=run.color, marker=run.marker, markersize=5, linestyle="--", linewidth=1.2)
        name = "" if len(runs) == 1 else run.name + ": "
        label = end_label(at, val, f"{name}val {{:.4f}}", run)
        if len(runs) == 1 or not label:  # a label a run is enough where there are many
            label += end_label(x, smoothed, f"{name}train {{:.3f}}", run)
        labels += label
        known = next((values[np.isfinite(values)] for values in (smoothed, val) if np.isfinite(values).any()), [])
        if len(known):
            lowest.append(np.nanmin(np.concatenate([known, val])))
            highest.append(np.quantile(known, 0.9))
    goals = figures_for(runs, published.FINEWEB_EDU_LOSS) if any(map(is_fineweb_edu, runs)) else {}
    labels += draw_goals(axis, goals, "{} {:.4f}")
    if lowest:  # the first steps' fall would flatten all that follows
        low, high = min([*lowest, *goals.values()]), max([*highest, *goals.values()])
        axis.set_ylim(low - 0.06 * (high - low) - 0.01, high + 0.25 * (high - low) + 0.01)
    axis.set_title("loss, nats a token (solid: training, smoothed; dashed: validation)")
    place_labels(axis, labels)


def draw_hellaswag(axis, runs):
    labels = []
    for run in runs:
        x, accuracy = run.points("hella")
        axis.plot(x, accuracy, color=run.color, marker=run.marker, markersize=5, linewidth=1.6)
        labels += end_label(x, accuracy, "{:.4f}", run)
    goals = {"chance": published.HELLASWAG_CHANCE} | figures_for(runs, published.HELLASWAG)
    labels += draw_goals(axis, goals, "{} {:.3f}")
    axis.set_title("HellaSwag accuracy (acc_norm)")
    place_labels(axis, labels)


def draw_lr(axis, runs):
    for run in runs:
        x, lr = run.points("lr")
        axis.plot(x, lr, color=run.color, linewidth=1.6)
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    axis.set_title("learning rate")
    label_value(axis, runs, "lr", "{:.1e}")


def draw_norm(axis, runs):
    """The gradient's norm before clipping; of outliers only that they are there."""
    highest = []
    for run in runs:
        x, norm = run.points("norm")
        axis.plot(x, norm, color=run.color, alpha=0.25, linewidth=0.8)
        axis.plot(x, smooth(norm), color=run.color, linewidth=1.6)
        known = norm[np.isfinite(norm)]
        highest += [np.quantile(known, 0.98)] if len(known) else []
    axis.set_ylim(0, 1.3 * max(highest) if highest and max(highest) > 0 else None)
    axis.set_title("gradient norm before clipping")
    label_value(axis, runs, "norm", "{:.2f}")


def draw_speed(axis, runs):
    for run in runs:
        x, speed = run.points("tok_per_sec")
        axis.plot(x, speed, color=run.color, alpha=0.25, linewidth=0.8)
        axis.plot(x, smooth(speed), color=run.color, linewidth=1.6)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    medians = [np.nanmedian(run.points("tok_per_sec")[1]) for run in runs if "tok_per_sec" in run.log]
    axis.set_title("throughput, tokens/s" + (f" (median {medians[0]:,.0f})" if len(runs) == len(medians) == 1 else ""))
    label_value(axis, runs, "tok_per_sec", "{:,.0f}")


def label_value(axis, runs, stream, number):
    """Write a single run's last value at its curve's end; the colours of several are named in the panel above."""
    if len(runs) == 1:
        x, values = runs[0].points(stream)
        place_labels(axis, end_label(x, smooth(values), number, runs[0]))


def end_label(x, values, text, run):
    """[(x, y, text, color)] of a curve's last finite point, or []; `{}` in the text becomes its value."""
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) == 0:
        return []
    last = finite[-1]
    return [(x[last], values[last], text.format(values[last]), run.color)]


def draw_goals(axis, goals, text):
    """Horizontal lines of published figures, and their labels."""
    for value in goals.values():
        axis.axhline(value, color=GRAY, linestyle=":", linewidth=1.2)
    return [(None, value, text.format(name, value), GRAY) for name, value in goals.items()]


def figures_for(runs, table):
    """The published figures for models of the runs' sizes, or else for the smallest, by name."""
    models = [run.record.get("model", {}) for run in runs]
    sizes = {(model.get("n_layer"), model.get("n_embd")) for model in models} & table.keys()
    return {name: value for size in sorted(sizes) or [min(table)] for name, value in table[size].items()}


def is_fineweb_edu(run):
    """Whether a run's data is FineWeb-Edu in GPT-2's tokens: else its loss means something else."""
    data, folder = run.record.get("data", {}), run.record.get("config", {}).get("data_dir", "")
    named = "fineweb-edu" in (data.get("source") or "") or Path(folder).name.startswith("edu_fineweb")
    return named and data.get("tokenizer", "gpt2") == "gpt2"


def place_labels(axis, labels):
    """Write labels, [(x or None, y, text, color)], right of the axis: beside their curves' ends, none over another."""
    if not labels:
        return
    low, high = axis.get_ylim()
    height = axis.get_window_extent().height / axis.figure.dpi * 72  # in points, about: the layout is yet to come
    gap = 1.35 * LABEL_PT / height
    labels = sorted(labels, key=lambda label: label[1])
    wanted = [min(max((y - low) / (high - low), 0.0), 1.0) for _, y, _, _ in labels]  # 0 bottom … 1 top
    for (x, y, text, color), place in zip(labels, spread(wanted, gap), strict=True):
        end = (1.0, y) if x is None else (x, y)
        axis.annotate(
            text,
            end,
            xycoords=("axes fraction" if x is None else "data", "data"),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=color,
            fontsize=LABEL_PT,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 0},
        )


def spread(wanted, gap):
    """Places near `wanted` (sorted, 0 … 1), at least `gap` apart: those that collide share out the room around them."""
    stacks = []  # lists of neighbours' wanted places
    for place in wanted:
        stacks.append([place])
        while len(stacks) > 1 and places_of(stacks[-1], gap)[0] - places_of(stacks[-2], gap)[-1] < gap:
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    return [place for stack in stacks for place in places_of(stack, gap)]


def places_of(stack, gap):
    """A stack of labels around the mean of the places they want, but within 0 … 1 where it fits there."""
    half = gap * (len(stack) - 1) / 2
    room = min(half, 0.5)
    middle = min(max(sum(stack) / len(stack), room), 1 - room)
    return [middle - half + gap * i for i in range(len(stack))]


def smooth(values):
    """The mean over a window of about a thirtieth of all values around each, NaNs left out: (n,) → (n,).

    At the start the window is short to both sides, where the loss falls fast; at the end it reaches back only.
    """
    n, known = len(values), np.isfinite(values)
    sums, counts = (np.cumsum(np.append(0, a)) for a in (np.where(known, values, 0.0), known))
    i = np.arange(n)
    before = np.minimum(n // 60, i)
    stop = np.minimum(i + before, n - 1) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[stop] - sums[i - before]) / (counts[stop] - counts[i - before])


@command
def main(argv=None):
    config = configure(PlotConfig, argv, positional="log_dirs")
    out = config.out or str(Path(config.log_dirs[0]) / "plot.png")
    plot_runs(config.log_dirs, out, config.x)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
