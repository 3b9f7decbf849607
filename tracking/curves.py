"""Draw the curves of one or several runs from their logs: losses, evaluations, learning rate, gradient norm, speed.

Used by training (plot.png at each validation), `plot.py`, `sweep.py` and `notebooks/plot_log.ipynb`. The panels are
tables: `LOSS`, `EVALUATIONS` and `DIAGNOSTICS`. A stream that is in none of them is drawn as scores over steps.
"""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from system.errors import UserError
from system.files import AtomicFile
from tracking import heat_map, published
from tracking.labels import Label, end_label, place_labels
from tracking.runlog import path_of, read_config, read_log
from tracking.titles import figure_title

# Okabe & Ito 2008: distinguishable for colour-blind readers too (without its yellow, which is too faint on white).
# Runs that share a colour have different markers, and each run's loss curve is labelled with its name.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv"
GRAY = "#666666"
SHORT_RUNS_HOURS = 2  # an axis of hours shows minutes if the longest run takes less
TICKS = 5  # at most, on a horizontal axis: their labels never touch
BESIDE_LOSS, IN_A_ROW = 2, 4  # panels of evaluations: beside the loss, and in each further row
MEDIANS = 400  # points of a median curve
LONGEST_NAME = 40  # characters of a run's name that are shown: its end, in which the runs of a sweep differ most
LARGEST = 1e30  # larger values cannot be drawn, because the size of an axis would overflow


@dataclass(frozen=True)
class Run:
    """A run and how it is drawn."""

    name: str
    log: dict  # its streams, {name: Stream}
    record: dict  # its config.json
    to_x: Callable  # steps (n,) → positions on the horizontal axis (n,)
    color: str
    marker: str
    planned: tuple = ((), ())  # (steps, learning rates) to come

    def points(self, stream):
        """Return (x, y) of a stream, each of shape (n,); n is 0 if the log does not have it."""
        if stream not in self.log:
            return np.empty(0), np.empty(0)
        steps, values = self.log[stream]
        values = np.where(np.abs(values) < LARGEST, values, np.nan)
        return self.to_x(steps.astype(float)), values


def plot_runs(log_dirs, out, x="steps", plan=None):
    """Write a PNG of the runs in `log_dirs` to `out`; see `draw_runs`."""
    figure = draw_runs(log_dirs, x, plan)
    with AtomicFile(out) as f:
        figure.savefig(f, format="png", dpi=100)


def draw_runs(log_dirs, x="steps", plan=None):
    """Return a matplotlib `Figure` of the runs. `x` is "steps", "tokens" or "hours" (of training steps only).

    `plan(settings, step)` returns the learning rates to come, (steps, rates), of a run with these settings in its
    config.json. They are drawn dotted, except over hours.

    Raises `UserError` if a folder is given twice, if no log has values, or if one lacks what `x` needs.
    """
    import matplotlib  # imported here because it is slow, and many runs never plot

    with matplotlib.rc_context({"text.parse_math": False}):  # a folder's name may hold dollar signs
        return draw_figure(log_dirs, x, plan)


def draw_figure(log_dirs, x, plan):
    from matplotlib.figure import Figure

    names = short_names(log_dirs)
    runs = [open_run(log_dir, name, i, x) for i, (log_dir, name) in enumerate(zip(log_dirs, names, strict=True))]
    if not any(run.log for run in runs):
        path = path_of(log_dirs[0])
        raise UserError(f"{path} {describe_content(path)}: expected lines STEP STREAM VALUE")
    x_title = x
    if x == "hours":
        runs, x_title = choose_time_unit(runs)
    elif plan is not None:
        runs = [replace(run, planned=plan(run.record.get("config", {}), last_step(run))) for run in runs]
    evaluations = evaluation_panels({stream for run in runs for stream in run.log})
    rows = panel_rows([panel.stream for panel in evaluations])
    figure = Figure(figsize=(14, 1.8 + 3.6 * len(rows)), layout="constrained")
    axes = {}
    for part, row in zip(figure.subfigures(len(rows), 1, height_ratios=(3, *[2] * (len(rows) - 1))), rows, strict=True):
        axes |= part.subplot_mosaic([row])
    figure.suptitle(figure_title(runs), fontsize=12)
    for panel in (LOSS, *evaluations, *DIAGNOSTICS):
        axis = axes[panel.stream]
        axis.set_xlabel(x_title)
        axis.locator_params(axis="x", nbins=TICKS)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(panel.title)
        place_labels(axis, panel.draw(axis, runs, panel))
    return figure


def last_step(run):
    """Return the last step whose learning rate was logged; 0 if there is none."""
    return int(run.log["lr"].steps[-1]) if "lr" in run.log else 0


def panel_rows(evaluations):
    """Return the streams of each row of panels. The loss panel is two panels wide if evaluations are beside it."""
    beside, further = evaluations[:BESIDE_LOSS], evaluations[BESIDE_LOSS:]
    loss = [LOSS.stream, LOSS.stream] if beside else [LOSS.stream]
    rows = [further[i : i + IN_A_ROW] for i in range(0, len(further), IN_A_ROW)]
    return [[*loss, *beside], *rows, [panel.stream for panel in DIAGNOSTICS]]


def evaluation_panels(streams):
    """Return the panels of the evaluations among the streams of the logs; an unknown stream is drawn as scores."""
    known = [panel for panel in EVALUATIONS if panel.stream in streams]
    named = {panel.stream for panel in (LOSS, *EVALUATIONS, *DIAGNOSTICS)} | WITHOUT_PANEL
    unknown = sorted(stream for stream in streams - named if not stream.startswith(heat_map.PREFIXES))
    return known + [Panel(stream, stream, draw_scores, "{:.4f}") for stream in unknown]


def open_run(log_dir, name, number, x):
    """Read a run and give it the colour and marker of its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read_log warns about each bad line; a plot shows the good ones
        log = read_log(log_dir)
    record = read_config(log_dir)
    marker = MARKERS[number // len(COLORS) % len(MARKERS)]
    return Run(name, log, record, x_axis(log_dir, log, record, x), COLORS[number % len(COLORS)], marker)


def describe_content(path):
    """Return what a file without values of a run holds, for an error message."""
    first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return f"begins with {first[:60]!r}" if first else "is empty"


def short_names(log_dirs):
    """Return for each folder the shortest end of its path that no other has, cut to `LONGEST_NAME` characters.

    Bytes that are no UTF-8 become U+FFFD.
    """
    paths = [Path(log_dir).resolve().parts for log_dir in log_dirs]
    if len(set(paths)) < len(paths):
        raise UserError(f"the same LOG_DIR is given twice: {' '.join(map(str, log_dirs))}; give each folder once")
    names = []
    for path in paths:
        length = next(n for n in range(1, len(path) + 1) if sum(path[-n:] == other[-n:] for other in paths) == 1)
        name = os.fsencode("/".join(path[-length:])).decode("utf-8", errors="replace")
        names.append(name if len(name) <= LONGEST_NAME else "…" + name[1 - LONGEST_NAME :])
    return names


def choose_time_unit(runs):
    """Return (runs, title of the axis) of an axis in hours, or in minutes if all runs are short."""
    longest = max(run.to_x(run.log["dt_ms"].steps[-1]) for run in runs)
    if longest >= SHORT_RUNS_HOURS:
        return runs, "hours of training"
    return [replace(run, to_x=in_minutes(run.to_x)) for run in runs], "minutes of training"


def in_minutes(to_hours):
    return lambda steps: 60 * to_hours(steps)


def x_axis(log_dir, log, record, x):
    """Return a function from steps (n,) to positions on the horizontal axis (n,)."""
    if x == "steps":
        return lambda steps: steps
    if x == "tokens":
        if "total_batch_size" not in record.get("config", {}):
            raise UserError(f"{log_dir} holds no config.json with the number of tokens per step: use --x steps")
        return lambda steps: steps * record["config"]["total_batch_size"]
    if "dt_ms" not in log:
        raise UserError(f"{log_dir}/log.txt has no stream dt_ms with the time per step: use --x steps")
    steps, dt_ms = log["dt_ms"].steps, np.where(log["dt_ms"].values < LARGEST, log["dt_ms"].values, 0.0)
    duration_ms = dt_ms * np.diff(steps, prepend=-1)  # steps that were not logged took as long as the next logged one
    done, hours = np.append(0, steps + 1), np.append(0, np.cumsum(duration_ms) / 3.6e6)
    return lambda steps: np.interp(steps, done, hours)


def smooth(values):
    """Return the mean of the finite values in a window around each value: (n,) → (n,).

    The window spans about a thirtieth of all values. It is shorter at the start, where the loss falls fast, and stays
    symmetric there; at the end it extends backwards only.
    """
    n, finite = len(values), np.isfinite(values)
    sums = np.cumsum(np.append(0, np.where(finite, values, 0.0)))
    counts = np.cumsum(np.append(0, finite))
    i = np.arange(n)
    radius = np.minimum(n // 60, i)
    stop = np.minimum(i + radius, n - 1) + 1
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums[stop] - sums[i - radius]) / (counts[stop] - counts[i - radius])


def smooth_by_median(values):
    """Return (positions, medians), both (m,), m ≤ MEDIANS: of the finite values in the windows of `smooth`.

    A median shows the level of a curve with outliers, which a mean moves towards them.
    """
    n = len(values)
    positions = np.unique(np.linspace(0, n - 1, min(n, MEDIANS)).astype(int))
    medians = np.full(len(positions), np.nan)
    for k, i in enumerate(positions):
        radius = min(n // 60, i)
        window = values[i - radius : i + radius + 1]
        window = window[np.isfinite(window)]
        if len(window):
            medians[k] = np.median(window)
    return positions, medians


@dataclass(frozen=True)
class Panel:
    """A panel of the figure. `draw(axis, runs, panel)` draws the curves and returns the labels at their ends."""

    stream: str  # the stream of the log that it shows
    title: str
    draw: Callable
    number: str  # format of its values, e.g. "{:.4f}"
    references: Callable | None = None  # config.json of each run → {name: value}, drawn as horizontal lines


def draw_losses(axis, runs, panel):
    """Draw the training loss, raw and smoothed, and the validation loss."""
    labels, lowest, highest = [], [], []
    for run in runs:
        x, smoothed = draw_raw_and_smoothed(axis, run, "train")
        val_x, val = run.points("val")
        axis.plot(val_x, val, color=run.color, marker=run.marker, markersize=5, linestyle="--", linewidth=1.2)
        name = "" if len(runs) == 1 else run.name + ": "
        best = draw_best(axis, run, val_x, val, panel)
        run_labels = end_label(val_x, val, name + "val " + panel.number + best, run.color)
        if len(runs) == 1 or not run_labels:  # several runs get one label each
            run_labels += end_label(x, smoothed, name + "train {:.3f}", run.color)
        labels += run_labels
        curve = smoothed if np.isfinite(smoothed).any() else val
        curve = curve[np.isfinite(curve)]
        if len(curve):
            lowest.append(np.nanmin(np.concatenate([curve, val])))
            highest.append(np.quantile(curve, 0.9))
    references = panel.references([run.record for run in runs])
    if lowest:  # the top is set without the first steps, whose fall would flatten the rest of the curve
        low, high = min([*lowest, *references.values()]), max([*highest, *references.values()])
        top = high + 0.25 * (high - low) + 0.01
        axis.set_ylim(low - 0.06 * (high - low) - 0.01, top)
        say_where_curves_begin(axis, runs, panel, top)
    return labels + draw_references(axis, references, "{} {:.4f}")


def draw_best(axis, run, val_x, val, panel):
    """Draw a ring around the lowest validation loss after step 0; returns words about it, or "" if it is the last."""
    trained = np.where(run.log["val"].steps > 0, val, np.nan) if len(val) else val
    if not np.isfinite(trained).any():
        return ""
    best = np.nanargmin(trained)
    if best == len(val) - 1:
        return ""
    axis.plot(val_x[best], val[best], color=run.color, marker="o", markersize=12, fillstyle="none")
    return f" (best {panel.number.format(val[best])}, step {run.log['val'].steps[best]:,})"


def say_where_curves_begin(axis, runs, panel, top):
    """Add to the title of the loss panel at which loss the curves begin, if that is above the panel."""
    begins = [values[0] for values in (run.points("train")[1] for run in runs) if len(values) and values[0] > top]
    if begins:
        axis.set_title(f"{panel.title}\ncut at the top: training begins at {max(begins):.2f}")


def draw_scores(axis, runs, panel):
    """Draw the results of an evaluation, one point each, and the reference values."""
    labels = []
    for run in runs:
        x, scores = run.points(panel.stream)
        axis.plot(x, scores, color=run.color, marker=run.marker, markersize=5, linewidth=1.6)
        labels += end_label(x, scores, panel.number, run.color)
    if panel.references is not None:
        labels += draw_references(axis, panel.references([run.record for run in runs]), "{} {:.3f}")
    return labels


def draw_bits(axis, runs, panel):
    """Draw bits per byte. The axis is chosen without those of the untrained models, which would flatten the curves."""
    labels = draw_scores(axis, runs, panel)
    trained = [values[x > 0] for x, values in (run.points(panel.stream) for run in runs)]
    trained = np.concatenate(trained)
    trained = trained[np.isfinite(trained)]
    if len(trained) > len(runs):  # with one validation of each run there is no curve yet
        low, high = trained.min(), trained.max()
        margin = 0.06 * (high - low) + 0.005
        axis.set_ylim(low - margin, high + margin)
    return labels


def draw_lr(axis, runs, panel):
    """Draw the learning rate, solid as logged and dotted as planned."""
    for run in runs:
        x, lr = run.points(panel.stream)
        axis.plot(x, lr, color=run.color, linewidth=1.6)
        steps, rates = (np.array(values, float) for values in run.planned)
        rates = np.where(np.abs(rates) < LARGEST, rates, np.nan)
        axis.plot(run.to_x(steps), rates, color=run.color, linewidth=1.2, linestyle=":")
    if any(len(run.planned[0]) for run in runs):
        axis.set_title(f"{panel.title} (dotted: planned)")
    axis.set_ylim(bottom=0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return single_run_label(runs, panel)


def draw_norm(axis, runs, panel):
    """Draw the gradient norm and its moving median. The axis is cut above most values, so outliers leave the panel."""
    tops, labels = [], []
    for run in runs:
        x, norm = run.points(panel.stream)
        positions, medians = smooth_by_median(norm)
        axis.plot(x, norm, color=run.color, alpha=0.25, linewidth=0.8)
        axis.plot(x[positions], medians, color=run.color, linewidth=1.6)
        labels += end_label(x[positions], medians, panel.number, run.color)
        norm = norm[np.isfinite(norm)]
        if len(norm):
            tops.append(1.3 * np.quantile(norm, 0.98))
    top = max(tops, default=0)
    axis.set_ylim(0, top if top > 0 else None)
    return labels if len(runs) == 1 else []  # several runs are named in the loss panel only


def draw_stream(axis, runs, panel):
    """Draw a stream of positive values, raw and smoothed; the title of a single run's panel gives the median."""
    for run in runs:
        draw_raw_and_smoothed(axis, run, panel.stream)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _: panel.number.format(value))
    if len(runs) == 1 and panel.stream in runs[0].log:
        median = np.nanmedian(runs[0].log[panel.stream].values)
        axis.set_title(f"{panel.title} (median {panel.number.format(median)})")
    return single_run_label(runs, panel)


def draw_raw_and_smoothed(axis, run, stream):
    """Draw a stream as a faint line and its mean over a moving window as a solid one; return (x, mean)."""
    x, values = run.points(stream)
    smoothed = smooth(values)
    axis.plot(x, values, color=run.color, alpha=0.25, linewidth=0.8)
    axis.plot(x, smoothed, color=run.color, linewidth=1.6)
    return x, smoothed


def single_run_label(runs, panel):
    """Return the label of a single run's last value; several runs are named in the loss panel only."""
    if len(runs) > 1:
        return []
    x, values = runs[0].points(panel.stream)
    return end_label(x, smooth(values), panel.number, runs[0].color)


def draw_references(axis, references, text):
    """Draw {name: value} as horizontal lines and return their labels."""
    for value in references.values():
        axis.axhline(value, color=GRAY, linestyle=":", linewidth=1.2)
    return [Label(None, value, text.format(name, value), GRAY) for name, value in references.items()]


LOSS_TITLE = "loss, nats per token (solid: training, smoothed; dashed: validation)"
LOSS = Panel("train", LOSS_TITLE, draw_losses, "{:.4f}", published.loss_references)
# Beside and below the loss: each panel is drawn if a run has its stream.
EVALUATIONS = (
    Panel("val_bpb", "validation, bits per byte", draw_bits, "{:.4f}"),
    Panel("hella", "HellaSwag accuracy (acc_norm)", draw_scores, "{:.4f}", published.hellaswag_references),
)
WITHOUT_PANEL = {"val", "dt_ms", "mfu", "mem_gb", "skipped", "output_lost"}  # `val` is drawn with the training loss
# The last row.
DIAGNOSTICS = (
    Panel("lr", "learning rate", draw_lr, "{:.1e}"),
    Panel("norm", "gradient norm before clipping", draw_norm, "{:.2f}"),
    Panel("tok_per_sec", "throughput, tokens/s", draw_stream, "{:,.0f}"),
)
