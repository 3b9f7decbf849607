"""Plot runs from their logs as a PNG: loss, HellaSwag, learning rate, gradient norm and throughput.

python plot.py LOG_DIR ... [--out plot.png] [--x steps|tokens|hours|params|flops]

With --x params or flops, a run is one point: its final loss and HellaSwag score, over its size or its compute.
Of a single run that was trained with --watch, a second PNG shows gradients and updates by layer.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import os
from pathlib import Path
from dataclasses import dataclass
from typing import Literal

import tyro

from configurator import configure
from system.errors import UserError, command
from system.files import require_writable_file
from tracking.curves import plot_runs
from tracking.heat_map import plot_watch
from tracking.runlog import path_of, plot_path, watch_path
from tracking.scaling import AXES, plot_scaling
from training.schedule import planned_rates


@dataclass(frozen=True)
class Settings:
    """Draw the curves of one or several runs on one set of axes."""

    log_dirs: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders of runs (each holds a log.txt)"""
    out: str | None = None
    """PNG to write; by default plot.png in the (first) folder, and for a run with --watch also watch.png;
    with --x params or flops scaling.png"""
    x: Literal["steps", "tokens", "hours", *AXES] = "steps"
    """what the horizontal axis counts; hours are those of training steps only
    params and flops: one point per finished run, by its size without embeddings or its compute, and a power law"""

    def check(self):
        if not self.log_dirs:
            raise UserError("no LOG_DIR given: python plot.py log/quickstart")
        for log_dir in self.log_dirs:
            if not os.path.isfile(path_of(log_dir)):
                raise UserError(f"{log_dir} holds no log.txt: expected the folder of a run")
        require_writable_file(self.path)

    @property
    def path(self):
        """Where the plot goes."""
        if self.out is not None:
            return self.out
        path = plot_path(self.log_dirs[0])
        return path.with_name("scaling.png") if self.x in AXES else path

    @property
    def heat_map_path(self):
        """Where the heat maps of a run with `--watch` go."""
        return watch_path(self.log_dirs[0]) if self.out is None else Path(self.out).with_suffix(".watch.png")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="log_dirs")
    Path(settings.path).parent.mkdir(parents=True, exist_ok=True)
    if settings.x in AXES:
        for line in plot_scaling(settings.log_dirs, settings.path, settings.x):
            print(f"left out {line}")
        print(f"wrote {settings.path}")
        return
    plot_runs(settings.log_dirs, settings.path, settings.x, planned_rates)
    print(f"wrote {settings.path}")
    if len(settings.log_dirs) == 1 and plot_watch(settings.log_dirs[0], settings.heat_map_path):
        print(f"wrote {settings.heat_map_path}")


if __name__ == "__main__":
    main()
