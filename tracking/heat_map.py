"""Draw the streams of `--watch` as heat maps over depth and steps: gradient norms and relative updates, side by side.

A row is a part of a block in one layer: first all attentions from the first layer to the last, then all MLPs, then the
LayerNorms, so that a trend over depth is a smooth change of colour.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from system.files import AtomicFile
from tracking.runlog import read_config, read_log
from tracking.titles import describe_run

GRADIENT, UPDATE = "grad/", "update/"  # begin the names of the streams
PREFIXES = (GRADIENT, UPDATE)
TITLES = {
    GRADIENT: "gradient norm before clipping",
    UPDATE: "update norm / weight norm (usual: about 1e-3)",
}
MOST_COLUMNS = 300  # steps beyond are averaged
ROW_INCHES, FEWEST_INCHES, MOST_INCHES = 0.22, 3.0, 16.0  # of a heat map's height
SMALLEST, LARGEST = 1e-30, 1e30  # values beyond have no colour
MOST_LABELS = 60  # of rows
SHADES = (0.5, 99.5)  # percentiles of the values at the ends of the colour scale


@dataclass(frozen=True)
class Row:
    """A row of the heat maps: one part of the model."""

    part: str  # of the stream's name: h.3.attn
    group: str  # attn
    layer: int | None  # 3; None for a part outside the blocks


def plot_watch(log_dir, out):
    """Write a PNG of a run's watched streams to `out`. Returns whether the run has any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about bad lines of the log, as in plot.png
        log = read_log(log_dir)
    if not any(stream.startswith(PREFIXES) for stream in log):
        return False
    figure = draw_watch(log, Path(log_dir).resolve().name + describe_run(read_config(log_dir)))
    with AtomicFile(out) as f:
        figure.savefig(f, format="png", dpi=100)
    return True


def draw_watch(log, title):
    """Return a matplotlib `Figure` of the watched streams of a log, {name: Stream}."""
    import matplotlib  # imported here because it is slow, and many runs never plot
    from matplotlib.figure import Figure

    rows = ordered_rows(log)
    height = min(max(ROW_INCHES * len(rows), FEWEST_INCHES), MOST_INCHES)
    with matplotlib.rc_context({"text.parse_math": False}):
        figure = Figure(figsize=(14, height + 1.6), layout="constrained")
        figure.suptitle(title, fontsize=12)
        axes = figure.subplots(1, 2, sharey=True)
        for axis, prefix in zip(axes, PREFIXES, strict=True):
            draw_heat_map(axis, log, rows, prefix)
        label_rows(*axes, rows)
    return figure


def ordered_rows(log):
    """Return the rows from top to bottom: parts of the blocks group by group, the others where the model has them."""
    parts = list(dict.fromkeys(name.partition("/")[2] for name in log if name.startswith(PREFIXES)))
    rows = [row_of(part) for part in parts]
    groups = list(dict.fromkeys(row.group for row in rows))
    return sorted(rows, key=lambda row: (groups.index(row.group), row.layer or 0))


def row_of(part):
    words = part.split(".")
    if len(words) == 3 and words[0] == "h" and words[1].isdecimal():
        return Row(part, words[2], int(words[1]))
    return Row(part, part, None)


def draw_heat_map(axis, log, rows, prefix):
    """Draw the streams with this prefix, one row each, in logarithmic colours."""
    from matplotlib.colors import LogNorm

    axis.set_title(TITLES[prefix])
    axis.set_xlabel("steps")
    axis.set_facecolor("#dddddd")  # a step that was not recorded, or whose value is no positive number
    names = [prefix + row.part for row in rows]
    if not any(len(drawable(log, name)[0]) for name in names):
        return
    edges, values = columns_of(log, names)
    shown = values[np.isfinite(values)]
    low, high = np.percentile(shown, SHADES)
    colours = LogNorm(low, max(high, 1.01 * low))
    y = np.arange(len(rows) + 1) - 0.5
    image = axis.pcolormesh(edges, y, np.ma.masked_invalid(values), norm=colours, cmap="viridis", rasterized=True)
    axis.figure.colorbar(image, ax=axis, extend="both", pad=0.02, aspect=7 * axis.figure.get_figheight())


def drawable(log, name):
    """Return (steps, values) of a stream, both (n,), without the values that have no colour."""
    if name not in log:
        return np.empty(0, np.int64), np.empty(0)
    steps, values = log[name]
    usable = (values > SMALLEST) & (values < LARGEST)
    return steps[usable], values[usable]


def columns_of(log, names):
    """Return (edges (m + 1,) in steps, values (rows, m)): geometric means over the steps of a column, NaN if none."""
    steps = np.unique(np.concatenate([drawable(log, name)[0] for name in names]))
    every = int(np.diff(steps).min()) if len(steps) > 1 else 1
    m = min(MOST_COLUMNS, (int(steps[-1]) - int(steps[0])) // every + 1)
    edges = np.linspace(steps[0], steps[-1] + every, m + 1)
    values = np.full((len(names), m), np.nan)
    for row, name in zip(values, names, strict=True):
        at, positive = drawable(log, name)
        column = np.searchsorted(edges, at, side="right") - 1
        with np.errstate(invalid="ignore"):
            row[:] = np.exp(np.bincount(column, np.log(positive), minlength=m) / np.bincount(column, minlength=m))
    return edges, values


def label_rows(axis, other, rows):
    """Label the rows, of a deep model not every layer, and separate the groups by lines."""
    every = math.ceil(len(rows) / MOST_LABELS)
    labelled = [(i, row) for i, row in enumerate(rows) if row.layer is None or row.layer % every == 0]
    axis.set_yticks([i for i, _ in labelled])
    axis.set_yticklabels([row.group if row.layer is None else f"{row.group} {row.layer}" for _, row in labelled])
    axis.set_ylim(len(rows) - 0.5, -0.5)  # the first row at the top
    for each in (axis, other):
        each.tick_params(axis="y", labelsize=7, length=0)
        for i in range(1, len(rows)):
            if rows[i].group != rows[i - 1].group:
                each.axhline(i - 0.5, color="white", linewidth=1.5)
