"""Samples during training: what the model writes so far."""

from dataclasses import dataclass
from typing import Annotated

from configurator import Range
from inference.text_samples import sample_texts
from tokens.tokenizer import get_tokenizer
from training import parallel
from training.schedule import due


@dataclass(frozen=True)
class SampleSettings:
    sample_interval: Annotated[int, Range(0)] = 250
    """steps between samples; 0: none"""
    sample_prompt: str | None = None
    """text that the samples continue; by default a sentence for gpt2 data and nothing for byte data"""
    num_samples: Annotated[int, Range(1, 10**4)] = 4
    """samples each time"""
    sample_tokens: Annotated[int, Range(1, 10**6)] = 48
    """new tokens in a sample"""


class Samples:
    name = "samples"
    Settings = SampleSettings

    def __init__(self, cfg, rt, data, model):
        self.cfg, self.tokenizer = cfg, get_tokenizer(data.tokens.tokenizer)

    @staticmethod
    def enabled(cfg):
        return cfg.sample_interval > 0

    def is_due(self, step, last):
        return step > 0 and (last or due(step, self.cfg.sample_interval))

    def measure(self, run):
        """Print samples. They draw from generators of their own, so training's random numbers stay the same."""
        cfg = self.cfg
        model = parallel.whole_model(run.model, run.rt)
        if run.rt.master:
            sizes = {"num_samples": cfg.num_samples, "max_new_tokens": cfg.sample_tokens}
            texts = sample_texts(model, self.tokenizer, run.rt, cfg.sample_prompt, seed=cfg.seed, **sizes)
            for number, text in enumerate(texts, 1):
                run.rt.print(f"[Sample {number}] {text}")
        return {}
