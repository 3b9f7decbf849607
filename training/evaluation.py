"""Evaluations between updates: the table of them, and running those that are due.

To add an evaluation, write one file with a class like those below and add the class to `EVALUATIONS`: its settings
become settings of the run, and what `measure` returns becomes streams of the log, which `plot.py` draws.
"""

import contextlib
from typing import ClassVar, Protocol

from system.errors import UserError, first_line
from system.runtime import is_lost_rank
from tracking.curves import plot_runs
from tracking.heat_map import plot_watch
from tracking.runlog import plot_path, watch_path
from training.eval_harness import Harness
from training.eval_hellaswag import HellaSwag
from training.eval_loss import ValidationLoss
from training.eval_samples import Samples
from training.schedule import planned_rates

EVALUATIONS = (ValidationLoss, HellaSwag, Harness, Samples)


class Evaluation(Protocol):
    """One row of `EVALUATIONS`."""

    name: ClassVar[str]  # for messages
    Settings: ClassVar[type]  # a dataclass whose fields become settings of the run

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


def validate(run, last):
    """Measure the validation loss if it is due. Returns True if a stop request interrupted it.

    It comes before saving, because it decides which checkpoint is the best; nothing else comes between a step and its
    save. A stop request cuts it short; the resumed run repeats it.
    """
    return any(measure(run, evaluation) is None for evaluation in due_evaluations(run, last, before_save=True))


def evaluate(run, last):
    """Run the other evaluations that are due, then redraw the plot if anything was measured.

    A stop request cuts them short; the training loop sees it after the next step.
    """
    step = run.state.step
    measured = run.state.val_step == step
    for evaluation in due_evaluations(run, last, before_save=False):
        values = measure(run, evaluation)
        if values is None:
            return
        measured = measured or bool(values)
    if measured and step > 0:
        if run.rt.master:
            draw_plot(run)
        run.progress.restart()


def due_evaluations(run, last, before_save):
    """The evaluations that are due: the validation loss if `before_save`, else the others."""
    chosen = [kind for kind in run.evaluations if isinstance(kind, ValidationLoss) == before_save]
    return [evaluation for evaluation in chosen if evaluation.is_due(run.state.step, last)]


def measure(run, evaluation):
    """Measure and log an evaluation. Returns its values, {} if it failed, None if a stop request cut it short."""
    values = {}
    with harmless(run, evaluation.name):
        values = evaluation.measure(run)
        if values:
            run.record(**values)
    run.progress.restart()
    return values


def draw_plot(run):
    path = plot_path(run.cfg.log_dir)
    run.unwritten.add(path)
    with harmless(run, str(path)):
        plot_runs([run.cfg.log_dir], path, plan=planned_rates)
        run.unwritten.discard(path)
    if run.cfg.watch:
        with harmless(run, "the heat map of --watch"):
            plot_watch(run.cfg.log_dir, watch_path(run.cfg.log_dir))


@contextlib.contextmanager
def harmless(run, name):
    """Print what goes wrong in the block, whatever it is, and go on: only training itself may end a run.

    A lost rank does end it, because every rank must take part in what follows.
    """
    try:
        yield
    except Exception as error:
        if run.rt.world_size > 1 and is_lost_rank(error):
            raise
        run.rt.print(f"warning: {name} failed ({first_line(error)}); the run goes on")
    finally:
        run.model.train()
