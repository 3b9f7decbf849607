"""HellaSwag during training: the accuracy by mean loss of the endings."""

from dataclasses import dataclass
from typing import Annotated

from configurator import Range
from inference import hellaswag
from tokens.tokenizer import get_tokenizer
from training import parallel
from training.schedule import due


@dataclass(frozen=True)
class HellaSwagSettings:
    hellaswag_interval: Annotated[int, Range(0)] = 250
    """steps between HellaSwag scores (log stream hella: acc_norm); 0: none"""
    hellaswag_limit: Annotated[int | None, Range(1)] = None
    """score only this many examples, from the first; None: all 10,042"""
    hellaswag_data: str | None = None
    """a .jsonl file in HellaSwag's own fields; None: the original, downloaded once"""


class HellaSwag:
    name = "HellaSwag"
    Settings = HellaSwagSettings

    def __init__(self, cfg, rt, data, model):
        self.interval = cfg.hellaswag_interval
        tokenizer = get_tokenizer(data.tokens.tokenizer)
        source = {"data": cfg.hellaswag_data, "limit": cfg.hellaswag_limit}
        self.task = hellaswag.prepare(rt, tokenizer, model.config.block_size, **source)

    @staticmethod
    def enabled(cfg):
        return cfg.hellaswag_interval > 0

    def is_due(self, step, last):
        return last or due(step, self.interval)

    def measure(self, run):
        model = parallel.whole_model(run.model, run.rt)
        _, correct, total = hellaswag.evaluate(model, self.task, run.rt)
        run.rt.print(f"HellaSwag acc_norm: {correct}/{total}={correct / total:.4f}")
        return {"hella": correct / total}
