"""Samples during training: what the model writes so far."""

from dataclasses import dataclass
from typing import Annotated

from configurator import Range
from inference.chat import Conversation
from inference.eval_model import for_inference
from inference.sampling import STYLES
from inference.text_samples import sample_texts
from tokens.tokenizer import get_tokenizer
from training import parallel
from training.schedule import due

DEFAULT_QUESTION = "Who are you?"  # of runs on conversations


@dataclass(frozen=True)
class SampleSettings:
    sample_interval: Annotated[int, Range(0)] = 250
    """steps between samples; 0: none"""
    sample_prompt: str | None = None
    """text that the samples continue; by default a sentence for gpt2 data and nothing for byte data;
    of a run on conversations, the question that they answer"""
    num_samples: Annotated[int, Range(1, 10**4)] = 4
    """samples each time"""
    sample_tokens: Annotated[int, Range(1, 10**6)] = 48
    """new tokens in a sample"""


class Samples:
    name = "samples"
    Settings = SampleSettings

    def __init__(self, cfg, rt, data, model):
        self.cfg, self.tokenizer = cfg, get_tokenizer(data.tokens.tokenizer)
        self.chat = data.tokens.chat_window is not None

    @staticmethod
    def enabled(cfg):
        return cfg.sample_interval > 0

    def is_due(self, step, last):
        return step > 0 and (last or due(step, self.cfg.sample_interval))

    def measure(self, run):
        """Print samples. They draw from generators of their own, so training's random numbers stay the same."""
        model = parallel.whole_model(run.model, run.rt)
        if run.rt.master:
            texts = self.answers(model, run.rt) if self.chat else self.continuations(model, run.rt)
            for number, text in enumerate(texts, 1):
                run.rt.print(f"[Sample {number}] {text}")
        return {}

    def continuations(self, model, rt):
        cfg = self.cfg
        sizes = {"num_samples": cfg.num_samples, "max_new_tokens": cfg.sample_tokens}
        return sample_texts(model, self.tokenizer, rt, cfg.sample_prompt, seed=cfg.seed, **sizes)

    def answers(self, model, rt):
        """The question and an answer, for each sample."""
        cfg = self.cfg
        question = DEFAULT_QUESTION if cfg.sample_prompt is None else cfg.sample_prompt
        with for_inference(model, rt) as gpt:
            for number in range(cfg.num_samples):
                conversation = Conversation(self.tokenizer, gpt.config.block_size, cfg.sample_tokens)
                seeds = {"seed": cfg.seed + number, "sampling": STYLES["creative"]}
                yield f"{question} →{conversation.answer(question, gpt, lambda piece: None, **seeds)}"
