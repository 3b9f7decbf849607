"""Where a run's log can go besides `log.txt`: TensorBoard and Weights & Biases, imported only when asked for.

A sink has `write(step, values)`. The names of the streams are those of the log.
"""

import dataclasses
import importlib.util
import math
import uuid
from pathlib import Path

from system.errors import UserError


def require_installed(package):
    """Raise `UserError` where `package`, which is also the name of its flag, is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # without an origin it is only a folder that happens to have the name
        raise UserError(f"--{package}: the package is not installed; pip install {package}, or leave the flag out")


def open_sinks(cfg, from_step):
    """The sinks that the settings ask for. `from_step` is where the run (re)starts."""
    sinks = []
    if cfg.tensorboard:
        sinks.append(TensorBoard(cfg.log_dir, from_step))
    if cfg.wandb:
        sinks.append(WandB(cfg, from_step))
    return sinks


class TensorBoard:
    """Event files in LOG_DIR/tensorboard: `tensorboard --logdir log` shows all runs."""

    def __init__(self, log_dir, from_step):
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier start wrote of these steps is hidden: they come again.
        self.writer = SummaryWriter(str(Path(log_dir) / "tensorboard"), purge_step=from_step)

    def write(self, step, values):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # nothing is lost with a run that is killed


class WandB:
    """A run on wandb.ai, or in LOG_DIR/wandb with WANDB_MODE=offline; WANDB_PROJECT and its other variables apply.

    A resumed run goes on in the same place; it passes over steps that are already there.
    """

    def __init__(self, cfg, from_step):
        import wandb

        try:
            self.run = wandb.init(
                id=run_id(Path(cfg.log_dir) / "wandb_id", from_step),
                name=Path(cfg.log_dir).name,
                dir=cfg.log_dir,
                config=dataclasses.asdict(cfg),
                resume="allow",
            )
        except wandb.Error as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--wandb: {reason}; run wandb login, or set WANDB_MODE=offline") from error

    def write(self, step, values):
        self.run.log({name: value for name, value in values.items() if math.isfinite(value)}, step=step)


def run_id(path, from_step):
    """The name under which wandb knows this run: new for a new run, and kept in a file for a resumed one."""
    if not (from_step and path.exists()):
        path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
