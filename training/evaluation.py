"""Evaluations between updates: the table of them, and running those that are due.

To add an evaluation, write one file with a class like those below and add the class to `EVALUATIONS`: its settings
become settings of the run, and what `measure` returns becomes streams of the log, which `plot.py` draws.
"""

from typing import ClassVar, Protocol

from system.errors import UserError
from tracking.curves import plot_runs
from tracking.runlog import plot_path
from training.eval_hellaswag import HellaSwag
from training.eval_loss import ValidationLoss
from training.eval_samples import Samples

EVALUATIONS = (ValidationLoss, HellaSwag, Samples)


class Evaluation(Protocol):
    """One row of `EVALUATIONS`."""

    name: ClassVar[str]  # for messages
    Settings: ClassVar[type]  # a dataclass whose fields become settings of the run; a method check() is optional

    def __init__(self, cfg, rt, data, model):
        """Prepare once, before the first step. If it is not available, raise `UserError`: the run continues without."""

    @staticmethod
    def enabled(cfg):
        """Whether the settings ask for this evaluation at all."""

    def is_due(self, step, last):
        """Whether to measure at `step`; `last` is true at the end of the run."""

    def measure(self, run):
        """Measure; every rank calls it. Return {log stream: value}, or None if a stop request interrupted it.

        It must leave weights, modes and torch's random state as they were.
        """


def prepare_evaluations(cfg, rt, data, model):
    """The enabled evaluations, ready to measure; says which are not available and why."""
    ready = []
    for kind in EVALUATIONS:
        if kind.enabled(cfg):
            try:
                ready.append(kind(cfg, rt, data, model))
            except UserError as error:
                rt.print(f"without {kind.name}: {error}")
    return ready


def evaluate(run, last):
    """Run the evaluations that are due, then redraw the plot. Returns True if a stop request interrupted them.

    A stop request cuts evaluation short; the resumed run repeats it.
    """
    measured = False
    for evaluation in run.evaluations:
        if evaluation.is_due(run.state.step, last):
            values = evaluation.measure(run)
            if values is None:
                return True
            run.record(**values)
            run.progress.restart()
            measured = measured or bool(values)
    if measured and run.state.step > 0:
        if run.rt.master:
            run.try_to_write(plot_path(run.cfg.log_dir), lambda path: plot_runs([run.cfg.log_dir], path))
        run.progress.restart()
    return False
