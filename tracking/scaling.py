"""Plot the final results of several runs over their size or their compute, with a power law through the losses.

Used by `plot.py`. All numbers come from the runs' config.json and log.txt.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from system.errors import UserError
from system.files import AtomicFile
from tracking.curves import COLORS, GRAY, LARGEST, MARKERS, draw_references, short_names
from tracking.labels import Label, place_labels
from tracking.power_law import fit_power_law
from tracking.published import HELLASWAG_CHANCE
from tracking.runlog import read_config, read_log
from tracking.titles import describe_runs, source_warning, tokenizer_warning


@dataclass(frozen=True)
class Axis:
    """A horizontal axis of the plot."""

    symbol: str  # in the formula of the fit
    title: str
    unit: str
    value: Callable  # (config, model), sections of config.json → position; a KeyError names what they lack
    format: Callable  # position → text of its tick


@dataclass(frozen=True)
class Point:
    """A finished run."""

    name: str
    record: dict  # its config.json
    x: float
    results: dict  # {stream: value} at the end of the run
    color: str
    marker: str


def plot_scaling(log_dirs, out, x):
    """Write a PNG of the finished runs in `log_dirs` to `out`. `x` is a name in `AXES`.

    Returns a line for each run that is left out. Raises `UserError` if that is all of them, or a folder is given twice.
    """
    points, left_out = read_points(log_dirs, AXES[x])
    if not points:
        raise UserError(f"no run can be drawn with --x {x}: {left_out[0]}")
    figure = draw_scaling(points, AXES[x])
    with AtomicFile(out) as f:
        figure.savefig(f, format="png", dpi=100)
    return left_out


def read_points(log_dirs, axis):
    """Return ([Point], [reason]): the finished runs, and one line for each of the others."""
    points, left_out = [], []
    for number, (log_dir, name) in enumerate(zip(log_dirs, short_names(log_dirs), strict=True)):
        look = COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]
        record = read_config(log_dir)
        try:
            results = final_results(log_dir, record)
            points.append(Point(name, record, position(record, axis), results, *look))
        except UserError as reason:
            left_out.append(f"{name}: {reason}")
    return points, left_out


def final_results(log_dir, record):
    """Return {stream: value} after the last step of a run, of positive values.

    Raises `UserError` if the run is unfinished or has no loss there.
    """
    max_steps = record.get("config", {}).get("max_steps")
    if max_steps is None:
        raise UserError("no config.json with the settings of the run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read_log warns about each bad line
        log = read_log(log_dir)
    if "val" not in log:
        raise UserError("its log has no validation loss")
    last = log["val"].steps[-1]
    if last != max_steps:
        raise UserError(f"unfinished: its last validation loss is that of step {last:,}, max_steps is {max_steps:,}")
    final = {name: stream.values[-1] for name, stream in log.items() if stream.steps[-1] == max_steps}
    if not 0 < final["val"] < LARGEST:
        raise UserError(f"its final validation loss is {final['val']}")
    return {name: value for name, value in final.items() if 0 < value < LARGEST}


def position(record, axis):
    """Return the position of a run on the axis. Raises `UserError` if its config.json lacks what that needs."""
    try:
        x = axis.value(record["config"], record["model"])
    except KeyError as missing:
        name = missing.args[0]
        raise UserError(f"config.json has no {name}: an earlier version wrote it") from None
    if not 0 < x < LARGEST:
        raise UserError(f"config.json has an impossible number of {axis.unit}")
    return float(x)


def draw_scaling(points, axis):
    """Return a matplotlib `Figure` of the points: their losses, and their HellaSwag scores if a run has any."""
    import matplotlib  # imported here because it is slow, as in `curves`
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False}):  # a folder's name may hold dollar signs
        scored = [point for point in points if "hella" in point.results]
        figure = Figure(figsize=(14 if scored else 9, 6), layout="constrained")
        panels = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
        stream, unit = choose_loss(points)
        warning = source_warning(points) + (tokenizer_warning(points) if stream == "val" else "")
        figure.suptitle(describe_runs(points) + warning, fontsize=12)
        panels[0].set_ylabel(f"final validation loss, {unit}")
        draw_losses(panels[0], points, stream)
        if not warning:
            draw_fit(panels[0], points, stream, axis.symbol)
        if scored:
            draw_scores(panels[1], scored)
        for panel in panels:
            panel.set_xscale("log")
            panel.set_xlim(log_limits([point.x for point in points], 1.5))
            set_log_ticks(panel.xaxis, axis.format)
            panel.set_xlabel(axis.title)
            panel.grid(alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
    return figure


def choose_loss(points):
    """Return (stream, unit) of the loss to draw: per byte if the runs' tokens differ and all have measured it."""
    tokenizers = {point.record.get("data", {}).get("tokenizer") for point in points}
    if len(tokenizers) > 1 and all("val_bpb" in point.results for point in points):
        return "val_bpb", "bits per byte"
    return "val", "nats per token"


def draw_losses(panel, points, stream):
    """Draw the losses."""
    for point in points:
        panel.plot(point.x, point.results[stream], color=point.color, marker=point.marker, markersize=7)
    panel.set_yscale("log")
    panel.set_ylim(log_limits([point.results[stream] for point in points], 1.02))
    set_log_ticks(panel.yaxis, "{:.5g}".format)
    place_labels(panel, [Label(p.x, p.results[stream], f"{p.name} {p.results[stream]:.4f}", p.color) for p in points])


def draw_fit(panel, points, stream, symbol):
    """Draw the power law through the lowest losses, with its formula above the panel; make the other points hollow."""
    x = np.array([point.x for point in points])
    losses = np.array([point.results[stream] for point in points])
    lowest = lowest_so_far(x, losses)
    law = fit_power_law(x[lowest], losses[lowest])
    if law is None:
        return
    label = f"{law.describe(symbol)}, within {np.abs(losses / law(x) - 1)[lowest].max():.2%}"
    if not lowest.all():
        label += f"\nthrough the {lowest.sum()} filled points: no run of the same {symbol} or less has a lower loss"
    for i in np.flatnonzero(~lowest):
        panel.lines[i].set_markerfacecolor("none")
    curve = np.geomspace(x.min(), x.max(), 200)
    panel.plot(curve, law(curve), color=GRAY, linestyle="--", linewidth=1.2, zorder=1, label=label)
    panel.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def draw_scores(panel, points):
    """Draw the accuracies on HellaSwag."""
    for point in points:
        panel.plot(point.x, point.results["hella"], color=point.color, marker=point.marker, markersize=7)
    panel.set_ylabel("final HellaSwag accuracy (acc_norm)")
    labels = [Label(p.x, p.results["hella"], f"{p.results['hella']:.4f}", p.color) for p in points]
    place_labels(panel, labels + draw_references(panel, {"chance": HELLASWAG_CHANCE}, "{} {:.2f}"))


def lowest_so_far(x, losses):
    """Whether each run has a lower loss than every run with as small an x or a smaller one: (n,), (n,) → bool (n,).

    In a sweep that is the best learning rate of each size, and the compute-efficient frontier.
    """
    lowest, best = np.zeros(len(x), bool), np.inf
    for i in np.lexsort((losses, x)):
        lowest[i] = losses[i] < best
        best = min(best, losses[i])
    return lowest


def log_limits(values, least):
    """Return the limits of a logarithmic axis: a tenth of the values' range beyond them, and at least a factor."""
    low, high = min(values), max(values)
    margin = max((high / low) ** 0.1, least)
    return low / margin, high * margin


def set_log_ticks(axis, text):
    """Set round numbers as the ticks of a logarithmic axis of matplotlib; `text` formats them."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(log_ticks(*axis.get_view_interval()))
    axis.set_major_formatter(lambda value, _: text(value))
    axis.set_minor_locator(NullLocator())


def log_ticks(low, high):
    """Return round numbers between low and high, at most nine, for a logarithmic axis."""
    from matplotlib.ticker import MaxNLocator

    if high / low < 4:
        ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    else:
        decades = np.arange(math.floor(math.log10(low)), math.log10(high))
        digits = {1: (1, 2, 3, 5, 7), 2: (1, 2, 3, 5), 3: (1, 2, 5), 4: (1, 3)}.get(len(decades), (1,))
        ticks = np.concatenate([10.0 ** decades[:: math.ceil(len(decades) / 9)] * digit for digit in digits])
    return np.sort(ticks[(ticks >= low) & (ticks <= high)])


def count_text(count):
    """Return a count of parameters in a few characters: 40k, 1.5M, 124M, 1.6B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return f"{count:g}"


def flops_text(flops):
    """Return a number of FLOPs in a few characters: 2e13."""
    digits, exponent = f"{flops:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def total_flops(config, model):
    return model["flops_per_token"] * config["total_batch_size"] * config["max_steps"]


AXES = {
    "params": Axis(
        "N",
        "N, parameters without embeddings",
        "parameters",
        lambda config, model: model["non_embedding_parameters"],
        count_text,
    ),
    "flops": Axis("C", "C, FLOPs of training", "FLOPs", total_flops, flops_text),
}
