"""Train a grid of models one after another, then print their table and draw their plot.

    python sweep.py config/quickstart.py --max_lr 1e-3,3e-3,6e-3 --B 4,8 [--nproc_per_node 8]

Takes all settings of train_gpt2.py. A flag with several values, separated by commas, is an axis of the grid. Each run
gets a folder in --log_dir, which is by default the log_dir of the config with _sweep appended. The same command again
resumes an interrupted sweep and skips the runs that are done.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import dataclasses
import itertools
import os
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from configurator import Range, configure, split_arguments
from formats import checkpoint
from model import GPTConfig
from system.errors import UserError, command
from system.lock import folder_lock
from system.signals import StopRequest
from tracking import runlog
from tracking.curves import plot_runs, smooth
from training.config import TrainConfig
from training.saving import is_out_of_patience

TRAIN = Path(__file__).with_name("train_gpt2.py")
LONGEST_NAME = 255  # bytes in the name of a file, on every common file system
FREE_TEXT = ("sample_prompt", "harness_tasks")  # settings in which a comma does not separate values
MAY_CHANGE = ("resume", "overwrite", "log_dir", "data_dir", "nproc_per_node")  # settings that may differ on resume
COLUMNS = {"steps": "{:,}", "val": "{:.4f}", "train": "{:.4f}", "hella": "{:.4f}", "tok/s": "{:,.0f}"}


@dataclass(frozen=True)
class Settings(TrainConfig):
    """Train a grid of models: a flag with several values, separated by commas, is an axis."""

    nproc_per_node: Annotated[int, Range(1, 10**4)] = 1
    """devices per run; more than one starts it by torchrun"""


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    values: dict  # {setting: text}, of the axes only
    settings: Settings
    arguments: list  # command line of train_gpt2.py

    @property
    def log_dir(self):
        return Path(self.settings.log_dir)

    def is_done(self):
        """Whether the run's last checkpoint is there and undamaged."""
        if checkpoint.is_good(checkpoint.path_of(self.log_dir, self.settings.max_steps)):
            return True
        path = checkpoint.newest(self.log_dir)
        if path is None or not checkpoint.is_good(path):
            return False
        return is_out_of_patience(checkpoint.load(path, mmap=True), self.settings.patience)

    def has_log(self):
        return runlog.path_of(self.log_dir).exists()


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if "-h" in argv or "--help" in argv:
        configure(Settings, ["--help"])
    folder, points = make_grid(argv)
    for point in points:
        check_same_settings(point)
    with folder_lock(folder):
        run_sweep(folder, points)


def run_sweep(folder, points):
    """Run the points that are not done, then print the table and draw the plot."""
    exit_codes = {}  # {log_dir: exit code} of the runs started now
    with StopRequest() as stop:
        for number, point in enumerate(points, 1):
            done = point.is_done() and not point.settings.overwrite
            state = ", already done" if done else ""
            print(f"run {number} of {len(points)}: {point.log_dir.name}{state}", flush=True)
            if not done:
                exit_codes[point.log_dir] = run_point(point, stop)
            if stop.requested:
                break
    print()
    print_table(points, exit_codes)
    log_dirs = [point.log_dir for point in points if summarize(point)]
    if log_dirs:
        plot_runs(log_dirs, folder / "plot.png")
        print(f"wrote {folder / 'plot.png'}")
    failed = sum(code != 0 for code in exit_codes.values())
    if failed:
        print(f"{failed} failed; run the same command again to resume")
        sys.exit(1)
    if stop.requested:
        print("stopped on request; run the same command again to resume")


def make_grid(argv):
    """Return the folder of the sweep and the list of its `Point`s.

    The settings of every point are checked here, so that a mistake in any of them stops the sweep before the first run.
    """
    config_files, flags = split_arguments(argv, typing.get_type_hints(Settings))
    texts = dict(flags)  # if a flag is given twice, the last one counts
    axes = {name: text.split(",") for name, text in texts.items() if "," in text and name not in FREE_TEXT}
    fixed = {name: text for name, text in texts.items() if name not in axes}
    if "log_dir" in axes:
        raise UserError(f"--log_dir {texts['log_dir']}: expected one folder, which holds the whole sweep")
    if "log_dir" not in fixed:
        fixed["log_dir"] = configure(Settings, [*config_files, *as_flags(fixed)]).log_dir + "_sweep"
    folder = Path(fixed["log_dir"])
    points = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{key}={text}" for key, text in values.items()).replace("/", "_") if values else "only"
        flags = fixed | values | {"log_dir": str(folder / name)}
        settings = configure(Settings, [*config_files, *as_flags(flags)])
        check_point(settings)
        flags.pop("nproc_per_node", None)
        points.append(Point(values, settings, [*config_files, *as_flags(flags)]))
    if len({point.log_dir for point in points}) < len(points):
        raise UserError("two runs of the grid are the same: give each value of a list once")
    return folder, points


def check_point(settings):
    """Raise `UserError` for a point that could not start: its batch, its shape or the name of its folder."""
    settings.check_batch(settings.nproc_per_node)
    if settings.init_from == "scratch":
        GPTConfig(n_layer=settings.n_layer, n_head=settings.n_head, n_embd=settings.n_embd, dropout=settings.dropout)
    name = Path(settings.log_dir).name
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"{name[:60]}…: the name of this run's folder has more than {LONGEST_NAME} bytes: vary fewer settings"
        )


def as_flags(settings):
    return [f"--{name}={text}" for name, text in settings.items()]


def check_same_settings(point):
    """Raise `UserError` if the point's folder holds a run with other settings, unless it is to be overwritten."""
    if point.settings.overwrite:
        return
    recorded = runlog.read_config(point.log_dir).get("config", {})
    for name, value in dataclasses.asdict(point.settings).items():
        may_differ = name in MAY_CHANGE or name not in recorded or value == "auto"
        if not may_differ and recorded[name] != value:
            raise UserError(
                f"{point.log_dir} holds a run with {name} = {recorded[name]}, but this sweep has {value}: use another"
                " --log_dir, or --overwrite"
            )


def run_point(point, stop):
    """Train one point of the grid in a child process and return its exit code.

    `stop` is the sweep's `StopRequest`. It is passed on to the child as SIGTERM, on which the child saves and exits.
    """
    command_line = [sys.executable]
    if point.settings.nproc_per_node > 1:
        nproc = f"--nproc_per_node={point.settings.nproc_per_node}"
        command_line += ["-m", "torch.distributed.run", "--standalone", nproc]
    command_line += [str(TRAIN), *point.arguments]
    if not point.settings.overwrite:
        command_line.append("--resume")
    process = subprocess.Popen(command_line)
    terminated = False
    try:
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                if stop.requested and not terminated:
                    process.terminate()
                    terminated = True
    finally:
        if process.poll() is None:  # an exception, such as the KeyboardInterrupt of a second Ctrl-C
            process.kill()
            process.wait()


def summarize(point):
    """Return {column of the table: value} of a run; a column without a value is missing."""
    if not point.has_log():
        return {}
    log = runlog.read_log(point.log_dir)
    summary = {name: log[name].values[-1] for name in ("val", "hella") if name in log}
    if "train" in log:
        summary["train"] = smooth(log["train"].values)[-1]
        summary["steps"] = int(log["train"].steps[-1]) + 1
    if "tok_per_sec" in log:
        summary["tok/s"] = np.median(log["tok_per_sec"].values)
    return summary


def print_table(points, exit_codes):
    """Print one row per run, sorted by validation loss."""
    summaries = {point.log_dir: summarize(point) for point in points}
    columns = [name for name in COLUMNS if any(name in summary for summary in summaries.values())]
    rows = [[*points[0].values, *columns, ""]]
    for point in sorted(points, key=lambda point: finite_or_inf(summaries[point.log_dir].get("val"))):
        summary = summaries[point.log_dir]
        cells = [COLUMNS[name].format(summary[name]) if name in summary else "-" for name in columns]
        rows.append([*point.values.values(), *cells, describe_state(point, exit_codes)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finite_or_inf(loss):
    """Return the loss, or infinity if it is missing or not finite, so that such runs come last."""
    return np.inf if loss is None or not np.isfinite(loss) else loss


def describe_state(point, exit_codes):
    if point.is_done():
        return ""
    code = exit_codes.get(point.log_dir, 0)
    return f"failed (exit code {code})" if code else "unfinished"


if __name__ == "__main__":
    main()
