"""A grid of training runs, one after another, then their table and their plot.

    python sweep.py config/quickstart.py --max_lr 1e-3,3e-3,6e-3 --B 4,8 [--nproc_per_node 8]

Everything that train_gpt2.py takes; a flag with several values, separated by commas, is an axis of the grid. The runs
lie beside each other in --log_dir (by default the config's, with _sweep at its end). The same command again goes on
where it was stopped, and passes over what is done.
"""

import dataclasses
import itertools
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import plot
from configurator import configure, split_arguments
from formats import checkpoint
from system.errors import UserError, command
from system.signals import StopRequest
from tracking import runlog
from training.config import TrainConfig

TRAIN = Path(__file__).with_name("train_gpt2.py")
FREE_TEXT = ("sample_prompt",)  # a comma in it is only a comma
NOT_THE_RUN = ("resume", "overwrite", "log_dir", "data_dir", "nproc_per_node")  # may differ when a run goes on


@dataclass(frozen=True)
class SweepConfig(TrainConfig):
    """Train a grid of models: a flag with several values, separated by commas, is an axis."""

    nproc_per_node: int = 1
    """devices of each run: with more than one it is started by torchrun"""


@dataclass(frozen=True)
class Point:
    """One run of the grid."""

    values: dict  # {setting: its text}, of the axes alone
    config: SweepConfig
    arguments: list  # for train_gpt2.py

    @property
    def name(self):
        return Path(self.config.log_dir).name

    def is_done(self):
        return checkpoint.path_of(self.config.log_dir, self.config.max_steps).exists()


def make_grid(argv):
    """The folder of the sweep and its `Point`s, each checked, so that a mistake shows before the first run."""
    words, flags = split_arguments(argv, typing.get_type_hints(SweepConfig))
    texts = dict(flags)  # of a flag given twice, the last counts
    axes = {name: text.split(",") for name, text in texts.items() if "," in text and name not in FREE_TEXT}
    fixed = {name: text for name, text in texts.items() if name not in axes}
    if "log_dir" in axes:
        raise UserError(f"--log_dir {texts['log_dir']}: one folder holds the whole sweep")
    folder = fixed.pop("log_dir", None) or configure(SweepConfig, [*words, *as_flags(fixed)]).log_dir + "_sweep"
    points = []
    for combination in itertools.product(*axes.values()):
        values = dict(zip(axes, combination, strict=True))
        name = ",".join(f"{key}={text}" for key, text in values.items()).replace("/", "_") or "only"
        settings = fixed | values | {"log_dir": str(Path(folder) / name)}
        config = configure(SweepConfig, [*words, *as_flags(settings)])
        config.check_batch(config.nproc_per_node)
        settings.pop("nproc_per_node", None)
        points.append(Point(values, config, [*words, *as_flags(settings)]))
    if len({point.name for point in points}) < len(points):
        raise UserError("two runs of this grid are the same: a value stands twice in a list")
    return Path(folder), points


def as_flags(settings):
    return [f"--{name}={text}" for name, text in settings.items()]


def check_earlier(point):
    """Raise `UserError` where the point's folder holds a run with other settings than are asked for now."""
    was = runlog.read_config(point.config.log_dir).get("config", {})
    for name, value in dataclasses.asdict(point.config).items():
        if name in was and name not in NOT_THE_RUN and was[name] != value != "auto":
            raise UserError(
                f"{point.config.log_dir} was made with {name} = {was[name]}, asked for is {value}: give another"
                " --log_dir, or --overwrite"
            )


def run_point(point, stop):
    """Train one point of the grid, as a process of its own; returns its exit code. A request to stop is passed on."""
    launcher = []
    if point.config.nproc_per_node > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={point.config.nproc_per_node}"]
    go_on = [] if point.config.overwrite else ["--resume"]
    process = subprocess.Popen([sys.executable, *launcher, str(TRAIN), *point.arguments, *go_on])
    passed_on = False
    try:
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                if stop.requested and not passed_on:
                    process.terminate()  # it finishes its step and saves
                    passed_on = True
    finally:
        if process.poll() is None:  # the second Ctrl-C
            process.kill()
            process.wait()


def summarize(point):
    """What a table tells of a run: its last losses, HellaSwag, speed and hours; None where there is none."""
    if not runlog.path_of(point.config.log_dir).exists():
        return {}
    log = runlog.read_log(point.config.log_dir)
    last = {name: log[name].values[-1] for name in ("val", "hella") if name in log}
    if "train" in log:
        last["train"] = plot.smooth(log["train"].values)[-1]
        last["steps"] = int(log["train"].steps[-1]) + 1
        last["tok/s"] = np.median(log["tok_per_sec"].values)
    return last


COLUMNS = {"steps": "{:,}", "val": "{:.4f}", "train": "{:.4f}", "hella": "{:.4f}", "tok/s": "{:,.0f}"}


def print_table(points, codes):
    """The runs, best validation loss first."""
    found = {point.name: summarize(point) for point in points}
    columns = [name for name in COLUMNS if any(name in summary for summary in found.values())]
    rows = [[*points[0].values, *columns, ""]]
    for point in sorted(points, key=lambda point: rank(found[point.name].get("val"))):
        cells = [
            COLUMNS[name].format(found[point.name][name]) if name in found[point.name] else "-" for name in columns
        ]
        code = codes.get(point.name)
        state = "" if point.is_done() else f"failed (exit code {code})" if code else "unfinished"
        rows.append([*point.values.values(), *cells, state])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def rank(loss):
    return np.inf if loss is None or not np.isfinite(loss) else loss


@command
def main(argv=None):
    argv = sys.argv[1:] if argv is None else list(argv)
    if "-h" in argv or "--help" in argv:
        configure(SweepConfig, ["--help"])
    folder, points = make_grid(argv)
    for point in points:
        if not point.config.overwrite:
            check_earlier(point)
    codes = {}
    with StopRequest() as stop:
        for number, point in enumerate(points, 1):
            done = point.is_done() and not point.config.overwrite
            print(f"run {number} of {len(points)}: {point.name}" + ", done before" * done, flush=True)
            if not done:
                codes[point.name] = run_point(point, stop)
            if stop.requested:
                break
    print()
    print_table(points, codes)
    begun = [point.config.log_dir for point in points if runlog.path_of(point.config.log_dir).exists()]
    if begun:
        plot.plot_runs(begun, folder / "plot.png")
        print(f"wrote {folder / 'plot.png'}")
    failed = sum(code != 0 for code in codes.values())
    if stop.requested or failed:
        print(f"{failed} failed" if failed else "stopped on request", "- the same command goes on")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
