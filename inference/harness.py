"""Score a model on tasks of EleutherAI's evaluation harness.

The harness (`lm_eval`, an optional package that is imported when it is used) brings the tasks, their prompts and their
metrics. The model answers its requests: `lm_eval_adapter.py`.
"""

import contextlib
import difflib
import random
from dataclasses import dataclass

import numpy as np
import torch

from system.errors import UserError
from system.packages import install_command
from text.retry import describe_network_error


@dataclass(frozen=True)
class HarnessTasks:
    names: list[str]
    manager: object  # the harness's TaskManager, which knows these names
    limit: int | None = None  # documents of each task
    num_fewshot: int | None = None  # solved examples in each prompt; None: what the task says
    errors: bool = True  # also compute standard errors


def find_tasks(names, include_path=None, setting="--tasks"):
    """The harness's `TaskManager`. `setting` is where the names are from, for messages.

    Raises `UserError` if the harness is not installed or a task is unknown.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"lm_eval is not installed ({error}): {install_command('harness')}") from error
    manager = TaskManager(include_path=include_path)
    for name in names:
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`lm_eval ls tasks` lists all"
            raise UserError(f"{setting} {name}: no such task in the harness; {hint}")
    return manager


def fetch(tasks):
    """Download the tasks' data, if it is not in the cache. Raises `UserError` where that fails."""
    with explained(tasks), random_state_kept(torch.device("cpu")):
        tasks.manager.load(tasks.names)


def evaluate(model, tasks, rt, batch_tokens=None, progress=False):
    """The harness's results of a `LoadedModel`; None on ranks other than a node's first. Every rank must call it.

    It leaves the model and all random states as they are. Raises `UserError` if a task's data cannot be downloaded.
    """
    from lm_eval import simple_evaluate

    from inference.lm_eval_adapter import HarnessModel

    options = {"limit": tasks.limit, "num_fewshot": tasks.num_fewshot, "log_samples": False}
    if not tasks.errors:
        options["bootstrap_iters"] = 0  # some are computed by a pool of processes
    with explained(tasks), random_state_kept(rt.device):
        adapter = HarnessModel(model, rt, batch_tokens, progress)
        return simple_evaluate(model=adapter, tasks=tasks.names, task_manager=tasks.manager, **options)


@contextlib.contextmanager
def explained(tasks):
    """Turn the errors of a network into a `UserError`."""
    try:
        yield
    except Exception as error:  # the harness and its data sets have errors of many libraries
        reason = describe_network_error(error)
        if reason is None:
            raise
        names = ",".join(tasks.names)
        raise UserError(f"{names}: {reason}; connect, or set HF_HOME to a cache that has the data") from error


@contextlib.contextmanager
def random_state_kept(device):
    """Restore the random states of Python, NumPy and torch, which the harness seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def metrics(results):
    """{"piqa/acc": 0.6, …}: the metrics of the harness's results without standard errors, by names without spaces."""
    found = {}
    for task, values in results["results"].items():
        for key, value in values.items():
            metric, comma, kind = key.partition(",")  # "acc,none": the metric, and the filter of the answers
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            parts = [task, metric] if kind == "none" else [task, metric, kind]
            found["_".join("/".join(parts).split())] = float(value)
    return found
