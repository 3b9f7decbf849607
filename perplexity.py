"""The loss of one or several models on any text: perplexity, and bits per byte, which all tokenizers share.

    python perplexity.py book.txt notes/ --model log/mine
    python perplexity.py data/mine --model gpt2,log/mine          # shards: their validation split
    torchrun --standalone --nproc_per_node=8 perplexity.py shakespeare --model gpt2-xl --stride 1024

Sources are those of `prepare.py`. Each document is scored by itself, each of its tokens once, in windows that slide by
`--stride` tokens: see inference/perplexity.py.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import contextlib
import functools
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from configurator import Range, configure
from formats.read import BestFlag
from inference.eval_model import load, open_model
from inference.perplexity import Totals, Windowing, ratio, score
from system import runtime
from system.errors import UserError, command, require
from system.files import AtomicFile, check_writable
from text.documents import FIELD
from text.read import read_documents
from text.sources import EXPECTED, HELP
from tokens.inspection import format_count


@dataclass(frozen=True)
class Settings(BestFlag):
    """Measure the loss of models on text. Also runs under torchrun."""

    sources: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(help=f"{EXPECTED}; or a folder of shards. {HELP}")
    ] = ()
    model: str = "gpt2"
    """gpt2 … gpt2-xl, a folder or a checkpoint; several with commas between them are compared"""
    split: Literal["val", "test", "train"] = "val"
    """which split of a folder of shards, or of a source that has splits; other text is scored whole"""
    text_field: str = FIELD
    """field of .jsonl files, and column of .parquet files, that holds the text"""
    limit: Annotated[int | None, Range(1)] = None
    """score only this many documents, from the beginning"""
    T: Annotated[int | None, Range(1)] = None
    """longest window in tokens; by default the model's block_size"""
    stride: Annotated[int | None, Range(1)] = None
    """tokens that each window scores: half of T by default; T is fastest and gives the least context"""
    begin_with_eot: bool = True
    """put end-of-text before each document, as in training; otherwise its first token is not scored"""
    batch_tokens: Annotated[int | None, Range(1)] = None
    """most tokens per forward pass, by default 2048 on a CPU and 16384 elsewhere"""
    out: str | None = None
    """write one JSON line per model and document: model, source, document, loss, tokens, bytes, words"""
    overwrite: bool = False
    """let --out replace an existing file"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", *runtime.DTYPES] = "auto"
    """number format of matrix products; auto: bfloat16 if the hardware supports it"""

    def check(self):
        if not self.sources:
            raise UserError(f"perplexity.py needs a source: {EXPECTED}, or a folder of shards")
        if not all(self.model.split(",")):
            raise UserError(f"--model {self.model}: expected one model, or several with commas between them")
        if self.out is not None:
            check_writable(self.out, self.overwrite)

    def windowing(self, block_size):
        """The `Windowing` for a model."""
        T = block_size if self.T is None else self.T
        require(block_size >= T, "--T", T, f"at most the model's block_size, {block_size}")
        stride = max(1, T // 2) if self.stride is None else self.stride
        require(stride <= T, "--stride", stride, f"at most T, {T}")
        return Windowing(T, stride, self.begin_with_eot, self.batch_tokens)


@dataclass(frozen=True)
class Result:
    """What one model scored."""

    model: str
    totals: Totals


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="sources")
    rt = runtime.start(settings.device, settings.dtype)
    with contextlib.closing(rt):
        run(settings, rt)


def run(settings, rt):
    names = settings.model.split(",")
    for name in names:  # before the first is scored, which may take hours
        settings.windowing(open_model(name, settings.best).shape["block_size"])
    read = functools.partial(read_documents, settings.sources, settings.split, settings.limit, settings.text_field)
    documents = rt.from_master(read)
    results = [score_model(name, documents, settings, rt) for name in names]
    rt.print("\n".join(table(results) + comparison(results)))
    if settings.out is not None and rt.master:
        write_totals(settings.out, documents, results)
        rt.print(f"losses written to {settings.out}")


def score_model(name, documents, settings, rt):
    """The `Result` of a model on the documents."""
    model = load(name, rt, settings.best)
    windowing = settings.windowing(model.gpt.config.block_size)
    begin = "each after end-of-text" if windowing.begin_with_eot else "each without its first token"
    rt.print(
        f"{model.source} on {rt.device} in {runtime.dtype_name(rt.dtype)}: {format_count(len(documents), 'document')},"
        f" {begin}; windows of {windowing.T} tokens, stride {windowing.stride}"
    )
    texts = [document.text for document in documents]
    totals = score(model.gpt, model.tokenizer, texts, windowing, rt, progress=rt.master)
    check_finite(totals.loss, documents, model.source)
    return Result(name, totals)


def check_finite(losses, documents, source):
    bad = np.flatnonzero(~np.isfinite(losses))
    if len(bad):
        raise UserError(
            f"{source}: its loss is {losses[bad[0]]} in document {bad[0]} ({documents[bad[0]].source}), expected a"
            " finite number: the weights are damaged, or the number format is too small (try --dtype float32)"
        )


# ---- the report ----


def table(results):
    """Lines of a table with one row per model; ± and brackets are 95% intervals over documents."""
    head = ("model", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "perplexity/word")
    rows = [head, *(row_of(result) for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(results[0].totals.loss) < 2:
        lines.append("one document: no interval")
    return lines


def row_of(result):
    totals = result.totals
    per_token = ratio(totals.loss, totals.tokens)
    return (
        result.model,
        f"{totals.tokens.sum():,.0f}",
        f"{totals.bytes.sum():,.0f}",
        format_estimate(per_token),
        format_exp(per_token),
        format_estimate(ratio(totals.loss / math.log(2), totals.bytes)),
        format_exp(ratio(totals.loss, totals.words)) if totals.words.any() else "no words",
    )


def comparison(results):
    """Lines with the difference in bits per byte between each model and the first, paired by document."""
    first = results[0]
    lines = []
    for other in results[1:]:
        if not np.array_equal(first.totals.bytes, other.totals.bytes):
            lines.append(
                f"{other.model} and {first.model} scored different bytes: use --begin_with_eot to compare them"
            )
            continue
        difference = ratio((other.totals.loss - first.totals.loss) / math.log(2), first.totals.bytes)
        lines.append(f"{other.model} less {first.model}: {format_estimate(difference, sign='+')} bits/byte")
    return lines


def format_estimate(estimate, sign=""):
    margin = "" if math.isnan(estimate.margin) else f" ±{estimate.margin:.4f}"
    return f"{estimate.value:{sign}.4f}{margin}"


def format_exp(estimate):
    value, low, high = estimate.exp()
    interval = "" if math.isnan(estimate.margin) else f" [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}{interval}"


def write_totals(path, documents, results):
    """Write one JSON line per model and document, in the order of the documents."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(path) as f:
        for result, (i, document) in itertools.product(results, enumerate(documents)):
            totals = result.totals
            line = {"model": result.model, "source": document.source, "document": i, "loss": float(totals.loss[i])}
            line |= {name: int(getattr(totals, name)[i]) for name in ("tokens", "bytes", "words")}
            f.write(json.dumps(line).encode() + b"\n")


if __name__ == "__main__":
    main()
