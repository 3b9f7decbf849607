"""Plot runs from their logs as a PNG: loss, HellaSwag, learning rate, gradient norm and throughput.

python plot.py LOG_DIR ... [--out plot.png] [--x steps|tokens|hours]
"""

from dataclasses import dataclass
from typing import Literal

import tyro

from configurator import configure
from system.errors import UserError, command
from tracking.curves import plot_runs
from tracking.runlog import path_of, plot_path


@dataclass(frozen=True)
class Settings:
    """Draw the curves of one or several runs on one set of axes."""

    log_dirs: tyro.conf.Positional[tuple[str, ...]] = ()
    """folders of runs (each holds a log.txt)"""
    out: str | None = None
    """PNG to write; by default plot.png in the (first) folder"""
    x: Literal["steps", "tokens", "hours"] = "steps"
    """what the horizontal axis counts; hours are those of training steps only"""

    def check(self):
        if not self.log_dirs:
            raise UserError("no LOG_DIR given: python plot.py log/quickstart")
        for log_dir in self.log_dirs:
            if not path_of(log_dir).is_file():
                raise UserError(f"{log_dir} holds no log.txt: expected the folder of a run")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="log_dirs")
    out = settings.out or str(plot_path(settings.log_dirs[0]))
    plot_runs(settings.log_dirs, out, settings.x)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
