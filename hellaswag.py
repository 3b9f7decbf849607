"""Score a model on HellaSwag.

python hellaswag.py --model log/gpt2_124M
torchrun --standalone --nproc_per_node=8 hellaswag.py --model gpt2-xl
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import dataclasses
import json
from pathlib import Path
from typing import Annotated, Literal

from configurator import Range, configure
from formats.read import BestFlag
from inference.eval_model import load
from inference.hellaswag import prepare
from inference.multiple_choice import score
from system import runtime
from system.errors import command
from system.files import AtomicFile, check_writable
from tracking import published
from tracking.intervals import share_interval


@dataclasses.dataclass(frozen=True)
class Settings(BestFlag):
    """Score a model on HellaSwag. Also runs under torchrun."""

    model: str = "gpt2"
    """a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT, llm.c or GGUF"""
    data: str | None = None
    """a .jsonl file with the original's fields; by default the original 10,042 validation examples, downloaded once"""
    limit: Annotated[int | None, Range(1)] = None
    """score only this many examples, from the beginning of the file"""
    batch_tokens: Annotated[int | None, Range(1)] = None
    """most tokens per forward pass, by default 2048 on a CPU and 16384 elsewhere"""
    out: str | None = None
    """write one JSON line per example: ind, label, losses, lengths, pred, pred_norm"""
    overwrite: bool = False
    """let --out replace an existing file"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", *runtime.DTYPES] = "auto"
    """number format of matrix products; auto: bfloat16 if the hardware supports it"""

    def check(self):
        if self.out is not None:
            check_writable(self.out, self.overwrite)


@command
def main(argv=None):
    settings = configure(Settings, argv)
    rt = runtime.start(settings.device, settings.dtype)
    try:
        run(settings, rt)
    finally:
        rt.close()


def run(settings, rt):
    model = load(settings.model, rt, settings.best)
    options = {"data": settings.data, "limit": settings.limit, "batch_tokens": settings.batch_tokens}
    task = prepare(rt, model.tokenizer, model.gpt.config.block_size, **options)
    rt.print(f"{model.source} on {rt.device} in {rt.precision}, {len(task.examples)} examples")
    if task.note:
        rt.print(task.note)
    scores = score(model.gpt, task, rt, progress=rt.master)
    report(rt, scores, model.gpt.config)
    if settings.out is not None and rt.master:
        write_scores(settings.out, task.examples, scores)
        rt.print(f"scores written to {settings.out}")


def report(rt, scores, config):
    """Print both accuracies with their confidence intervals, and the published figures for this model size."""
    correct, correct_norm, n = scores.counts()
    rt.print(f"acc: {correct}/{n}={correct / n:.4f}  acc_norm: {correct_norm}/{n}={correct_norm / n:.4f}")
    low, high = share_interval(correct / n, n)
    low_norm, high_norm = share_interval(correct_norm / n, n)
    rt.print(f"95% interval: acc {low:.4f} to {high:.4f}, acc_norm {low_norm:.4f} to {high_norm:.4f}")
    figures = published.HELLASWAG.get((config.n_layer, config.n_embd), {})
    if figures:
        rt.print("published acc_norm: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def write_scores(path, examples, scores):
    """Write one JSON line per example, in the file's order."""
    by_sum, by_mean = scores.predictions()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as f:
        for i, example in enumerate(examples):
            line = {
                "ind": example.ind,
                "label": example.label,
                "losses": scores.losses[i].tolist(),
                "lengths": scores.lengths[i].tolist(),
                "pred": by_sum[i].item(),
                "pred_norm": by_mean[i].item(),
            }
            f.write(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
