"""Send the values of a run's log to TensorBoard and Weights & Biases too. Both are imported only if enabled."""

import dataclasses
import importlib.util
import math
import uuid
from pathlib import Path
from typing import Protocol

from system.errors import UserError
from system.packages import install_command


class Sink(Protocol):
    """A destination of a run's logged values, beside log.txt. `RunLog` calls it on the master rank only."""

    def write(self, step: int, values: dict[str, float]):
        """Record `values`, {stream: value}, for `step`. The streams have the names of the log.

        Steps never decrease within a run. Values may be NaN or infinite. An `OSError` does not end the run.
        """


def require_installed(package):
    """Raise `UserError` if `package` is not installed. Its flag and its extra in pyproject.toml have the same name."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # without an origin it is any folder with that name
        raise UserError(f"--{package}: the package is not installed; {install_command(package)}, or omit the flag")


def open_sinks(cfg, from_step):
    """Return the sinks that the settings enable. `from_step` is the step at which the run starts or resumes."""
    sinks = []
    if cfg.tensorboard:
        sinks.append(TensorBoard(cfg.log_dir, from_step))
    if cfg.wandb:
        sinks.append(WandB(cfg, from_step))
    return sinks


class TensorBoard:
    """A `Sink` that writes event files to LOG_DIR/tensorboard; `tensorboard --logdir log` shows all runs."""

    def __init__(self, log_dir, from_step):
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides events of this step and later ones, which the resumed run writes again
        self.writer = SummaryWriter(str(Path(log_dir) / "tensorboard"), purge_step=from_step)

    def write(self, step, values):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a killed run loses nothing


class WandB:
    """A `Sink` that logs to wandb.ai, or to LOG_DIR/wandb if WANDB_MODE=offline.

    WANDB_PROJECT and wandb's other environment variables apply. A resumed run continues the same wandb run; wandb
    ignores the steps that it already has.
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
    """Return the run's id in wandb, which is kept in the file `path`: a new one if the run starts at step 0."""
    if from_step == 0 or not path.exists():
        path.write_text(uuid.uuid4().hex[:8] + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
