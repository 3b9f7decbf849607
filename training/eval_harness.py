"""Tasks of EleutherAI's evaluation harness during training, each metric in a log stream of its own."""

from dataclasses import dataclass
from typing import Annotated

from configurator import Range
from inference import harness
from inference.eval_model import LoadedModel
from tokens.tokenizer import get_tokenizer
from training import parallel
from training.schedule import due


@dataclass(frozen=True)
class HarnessSettings:
    harness_tasks: str = ""
    """tasks of EleutherAI's harness, with commas between them (log streams like piqa/acc); needs lm_eval"""
    harness_interval: Annotated[int, Range(0)] = 0
    """steps between scores on harness_tasks; 0: only at the end"""
    harness_limit: Annotated[int | None, Range(1)] = None
    """score only this many documents of each task; None: all"""
    harness_include_path: str | None = None
    """a folder with tasks of your own, as .yaml files"""


class Harness:
    name = "harness"
    Settings = HarnessSettings

    def __init__(self, cfg, rt, data, model):
        self.interval = cfg.harness_interval
        self.tokenizer = get_tokenizer(data.tokens.tokenizer)
        names = cfg.harness_tasks.split(",")
        manager = harness.find_tasks(names, cfg.harness_include_path, "harness_tasks")
        self.tasks = harness.HarnessTasks(names, manager, cfg.harness_limit, errors=False)
        rt.from_master(lambda: harness.fetch(self.tasks))  # once, before all ranks read it

    @staticmethod
    def enabled(cfg):
        return cfg.harness_tasks != ""

    def is_due(self, step, last):
        return last or due(step, self.interval)

    def measure(self, run):
        gpt = parallel.whole_model(run.model, run.rt)
        model = LoadedModel(gpt, self.tokenizer, "the model in training", chat=False)
        results = harness.evaluate(model, self.tasks, run.rt)
        values = run.rt.from_master(lambda: harness.metrics(results))  # only the first rank of a node has results
        run.rt.print("harness: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
        return values
