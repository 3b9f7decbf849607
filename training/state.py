"""What a run is made of, and the part of it that must survive a restart."""

import math
from collections import deque
from dataclasses import dataclass, field

import torch

from system.errors import first_line
from system.runtime import Runtime

WINDOW = 128  # steps that the outlier rule looks back


@dataclass
class TrainState:
    """The plain values that must survive a restart. The tensors are the model's, the optimizer's and the scaler's."""

    step: int = 0  # updates made
    val_loss: float | None = None  # the last validation loss, in nats per token
    val_step: int | None = None  # the step at which val_loss was measured
    best: tuple[float, int] | None = None  # the lowest validation loss after step 0, and its step
    validations_since_best: int = 0
    bad_steps: int = 0  # consecutive steps without a finite loss and gradient
    skipped: int = 0  # number of skipped updates
    recent_losses: deque = field(default_factory=lambda: deque(maxlen=WINDOW))
    recent_norms: deque = field(default_factory=lambda: deque(maxlen=WINDOW))

    def record_validation(self, loss):
        """Note the validation loss of this step. One at step 0 is not of this run's work and never counts as best."""
        repeated = self.val_step == self.step  # in a run that was resumed from this step
        self.val_loss, self.val_step = loss, self.step
        if repeated or self.step == 0:
            return
        if loss < (math.inf if self.best is None else self.best[0]):  # never true for NaN
            self.best, self.validations_since_best = (loss, self.step), 0
        else:
            self.validations_since_best += 1

    def out_of_patience(self, patience):
        """Whether this step's validation is at least number `patience` in a row without a new lowest loss; 0: never."""
        return 0 < patience <= self.validations_since_best and self.val_step == self.step

    def state_dict(self):
        """Plain values for a checkpoint."""
        values = {name: getattr(self, name) for name in SCALARS}
        return values | {"outliers": [{"values": list(window)} for window in (self.recent_losses, self.recent_norms)]}

    def load_state_dict(self, values):
        for name in SCALARS:
            setattr(self, name, (LATER_SCALARS | values)[name])
        for window, saved in zip((self.recent_losses, self.recent_norms), values["outliers"], strict=True):
            window.clear()
            window.extend(saved["values"])


SCALARS = ("step", "val_loss", "val_step", "best", "validations_since_best", "bad_steps", "skipped")
LATER_SCALARS = {"validations_since_best": 0}  # that checkpoints of earlier versions lack, and their value


@dataclass
class Run:
    """Everything that the training loop uses; `training.setup` makes it."""

    cfg: object  # TrainConfig, with B as a number
    rt: Runtime
    stop_request: object  # StopRequest: set by a signal to this process
    state: TrainState
    model: torch.nn.Module  # the plain GPT
    train_model: torch.nn.Module  # compiled and distributed: (x, y) → mean loss
    eval_model: torch.nn.Module  # compiled only
    optimizers: object
    scaler: torch.amp.GradScaler  # scales gradients in float16; passes them through otherwise
    loader: object  # TrainLoader
    tokenizer_name: str
    evaluations: list
    log: object  # RunLog on the master, None on other ranks
    progress: object
    update_filter: object
    profiler: object
    watch: object
    start_step: int = 0  # the first step of this process: 0, or the resumed checkpoint's
    data_digest: str | None = None  # checksum of the data, see `RunData.digest`
    chat: bool = False  # whether the data are conversations
    good_steps: set = field(default_factory=set)  # of the numbered checkpoints that were written or verified since then
    saved_best: tuple[float, int] | None = None  # `state.best` when the best checkpoint was last written
    unwritten: set = field(default_factory=set)  # paths that could not be written the last time

    def record(self, **values):
        """Log values of the current step (master only)."""
        if self.log is not None:
            self.log.write(self.state.step, **values)

    def try_to_write(self, path, write):
        """Return whether `write(path)` succeeded. A full disk does not end the run, and earlier files stay whole."""
        try:
            write(path)
        except OSError as error:
            self.rt.print(f"warning: could not write {path} ({first_line(error)}); earlier files are unchanged")
            self.unwritten.add(path)
            return False
        self.unwritten.discard(path)
        return True
