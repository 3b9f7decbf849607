"""Score a model on tasks of EleutherAI's evaluation harness, without exporting it.

    pip install lm_eval==0.4.13
    python harness.py --model log/gpt2_124M --tasks lambada_openai,wikitext,arc_easy,piqa --limit 200
    torchrun --standalone --nproc_per_node=8 harness.py --model gpt2-xl --tasks hellaswag

The harness brings the tasks, their prompts and their metrics; the model answers its requests: inference/requests.py.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import contextlib
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from configurator import Range, configure
from inference.eval_model import load
from system import runtime
from system.errors import UserError, command
from system.files import AtomicFile, check_writable
from text.retry import describe_network_error

VERSION = "0.4.13"  # of lm_eval, with which this was tested


@dataclass(frozen=True)
class Settings:
    """Score a model on tasks of EleutherAI's evaluation harness. Also runs under torchrun."""

    model: str = "gpt2"
    """gpt2 … gpt2-xl, a folder or a checkpoint"""
    tasks: str = ""
    """the harness's names of tasks, with commas between them: lambada_openai,wikitext,arc_easy,piqa"""
    limit: Annotated[int | None, Range(1)] = None
    """score only this many documents of each task"""
    num_fewshot: Annotated[int | None, Range(0)] = None
    """solved examples in each prompt; by default what the task says"""
    include_path: str | None = None
    """a folder with tasks of your own, as .yaml files"""
    batch_tokens: Annotated[int | None, Range(1)] = None
    """most tokens per forward pass, by default 2048 on a CPU and 16384 elsewhere"""
    out: str | None = None
    """write the results to this file, as JSON"""
    overwrite: bool = False
    """let --out replace an existing file"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", *runtime.DTYPES] = "auto"
    """number format of matrix products; auto: bfloat16 if the hardware supports it"""

    def check(self):
        if not all(self.tasks.split(",")):
            raise UserError("--tasks: expected the harness's names with commas between them, like lambada_openai,piqa")
        if self.out is not None:
            check_writable(self.out, self.overwrite)


@command
def main(argv=None):
    settings = configure(Settings, argv)
    manager = find_tasks(settings)
    rt = runtime.start(settings.device, settings.dtype)
    with contextlib.closing(rt):
        run(settings, manager, rt)


def find_tasks(settings):
    """The harness's `TaskManager`. Raises `UserError` if the harness is not installed or a task is unknown."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(f"harness.py needs lm_eval ({error}): pip install lm_eval=={VERSION}") from error
    manager = TaskManager(include_path=settings.include_path)
    for name in settings.tasks.split(","):
        if name not in manager.all_tasks:
            nearest = difflib.get_close_matches(name, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(nearest)}?" if nearest else "`lm_eval ls tasks` lists all"
            raise UserError(f"--tasks {name}: no such task in the harness; {hint}")
    return manager


def run(settings, manager, rt):
    from lm_eval.utils import make_table

    from inference.lm_eval_adapter import HarnessModel

    model = load(settings.model, rt)
    rt.print(f"{model.source} on {rt.device} in {runtime.dtype_name(rt.dtype)}")
    results = evaluate(HarnessModel(model, rt, settings.batch_tokens), settings, manager)
    if not rt.master:
        return
    rt.print(make_table(results))
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(settings.out) as f:
            f.write(json.dumps(results["results"], indent=1).encode() + b"\n")
        rt.print(f"results written to {settings.out}")


def evaluate(model, settings, manager):
    """The harness's results. Raises `UserError` if a task's data cannot be downloaded."""
    from lm_eval import simple_evaluate

    tasks = settings.tasks.split(",")
    options = {"limit": settings.limit, "num_fewshot": settings.num_fewshot, "log_samples": False}
    try:
        return simple_evaluate(model=model, tasks=tasks, task_manager=manager, **options)
    except Exception as error:  # the harness and its data sets have errors of many libraries
        reason = describe_network_error(error)
        if reason is None:
            raise
        raise UserError(f"{settings.tasks}: {reason}; connect, or set HF_HOME to a cache that has the data") from error


if __name__ == "__main__":
    main()
