"""Place the labels of a panel at its right edge, each near the end of its curve and none over another."""

from typing import NamedTuple

import numpy as np

LABEL_PT = 8.5  # font size of the labels, in points
LINE = {"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.5, "shrinkA": 0, "shrinkB": 0}  # from a label to its point


class Label(NamedTuple):
    """A label for the point (x, y) in data coordinates; x is None for a horizontal line across the panel."""

    x: float | None
    y: float
    text: str
    color: str


def end_label(x, values, text, color):
    """Return [Label] for the last finite point of a curve, or [] if there is none; `{}` in `text` becomes its value."""
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) == 0:
        return []
    last = finite[-1]
    return [Label(x[last], values[last], text.format(values[last]), color)]


def place_labels(axis, labels):
    """Write the labels to the right of the axis, each connected to its point by a thin line."""
    if not labels:
        return
    scale = axis.yaxis.get_transform().transform  # the logarithm on a logarithmic axis
    low, high = scale(np.array(axis.get_ylim()))
    height_pt = axis.get_window_extent().height / axis.figure.dpi * 72  # approximate: before the final layout
    labels = sorted(labels, key=lambda label: label.y)
    wanted = [min(max((scale(label.y) - low) / (high - low), 0.0), 1.0) for label in labels]  # 0 bottom … 1 top
    for label, height in zip(labels, spread(wanted, gap=1.35 * LABEL_PT / height_pt), strict=True):
        axis.annotate(
            label.text,
            (1.0 if label.x is None else label.x, label.y),
            xycoords=("axes fraction" if label.x is None else "data", "data"),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=label.color,
            fontsize=LABEL_PT,
            verticalalignment="center",
            annotation_clip=False,
            arrowprops=LINE | {"color": label.color},
        )


def spread(wanted, gap):
    """Return heights close to `wanted` (sorted, 0 … 1) that are at least `gap` apart.

    Heights that are too close form a group, which is centred on the mean of its wanted heights; groups that then
    overlap are merged.
    """
    groups = []  # lists of wanted heights
    for height in wanted:
        groups.append([height])
        while len(groups) > 1 and group_heights(groups[-1], gap)[0] - group_heights(groups[-2], gap)[-1] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [height for group in groups for height in group_heights(group, gap)]


def group_heights(group, gap):
    """Return heights `gap` apart, centred on the mean of the group's wanted heights, within 0 … 1 if they fit."""
    half = gap * (len(group) - 1) / 2
    margin = min(half, 0.5)
    middle = min(max(sum(group) / len(group), margin), 1 - margin)
    return [middle - half + gap * i for i in range(len(group))]
