"""Score a model on tasks of EleutherAI's evaluation harness, without exporting it.

    pip install lm_eval==0.4.13
    python harness.py --model log/gpt2_124M --tasks lambada_openai,wikitext,arc_easy,piqa --limit 200
    torchrun --standalone --nproc_per_node=8 harness.py --model gpt2-xl --tasks hellaswag

The harness brings the tasks, their prompts and their metrics; the model answers its requests: inference/requests.py.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from configurator import Range, configure
from formats.read import BestFlag
from inference.eval_model import load
from inference.harness import HarnessTasks, evaluate, find_tasks
from system import runtime
from system.errors import UserError, command
from system.files import AtomicFile, check_writable


@dataclass(frozen=True)
class Settings(BestFlag):
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
    manager = find_tasks(settings.tasks.split(","), settings.include_path)
    rt = runtime.start(settings.device, settings.dtype)
    with contextlib.closing(rt):
        run(settings, manager, rt)


def run(settings, manager, rt):
    from lm_eval.utils import make_table

    model = load(settings.model, rt, settings.best)
    rt.print(f"{model.source} on {rt.device} in {runtime.dtype_name(rt.dtype)}")
    tasks = HarnessTasks(settings.tasks.split(","), manager, settings.limit, settings.num_fewshot)
    results = evaluate(model, tasks, rt, settings.batch_tokens, progress=True)
    if not rt.master:
        return
    rt.print(make_table(results))
    if settings.out is not None:
        Path(settings.out).parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(settings.out) as f:
            f.write(json.dumps(results["results"], indent=1).encode() + b"\n")
        rt.print(f"results written to {settings.out}")


if __name__ == "__main__":
    main()
