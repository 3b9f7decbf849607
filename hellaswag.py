"""HellaSwag: does the model find the likely ending of a story? `python hellaswag.py`, or from training `evaluate`.

Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?": 10,042 validation examples, a context and
four endings each. The model scores each ending by the loss of its tokens; `acc` takes the ending with the lowest sum,
`acc_norm` the one with the lowest mean.

An example is one row: its context once, then its four endings side by side. An ending sees the context and itself, and
its positions go on from the context's, so the row scores what four rows would, with half the tokens.
"""

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

from configurator import configure
from formats.read import read
from inference.eval_model import reading
from model import GPT
from ops.cross_entropy import IGNORE
from system import runtime
from system.download import download
from system.errors import UserError, command
from system.files import AtomicFile
from tokens.tokenizer import get_tokenizer
from tracking import published

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"  # as in Hugging Face's datasets, 2020
DEFAULT_PATH = Path("data/hellaswag/hellaswag_val.jsonl")
ENDINGS = 4
LOGITS_AT_ONCE = 256  # positions whose logits are in memory together: 50 MB in float32


@dataclasses.dataclass(frozen=True)
class Example:
    ind: int  # its number in the data set
    label: int  # the right ending
    ctx: list[int]  # ids, at least one
    endings: list[list[int]]  # ids, each at least one

    def row_length(self):
        """Tokens that the model must see: no ending's last one, as nothing follows it."""
        return len(self.ctx) + sum(len(ending) - 1 for ending in self.endings)


@dataclasses.dataclass(frozen=True)
class Batch:
    """B examples, padded on the right to T tokens; M of the positions are followed by a token to score."""

    index: torch.Tensor  # (B,) which examples these are
    ids: torch.Tensor  # (B, T)
    pos: torch.Tensor  # (B, T) position of each token in the story that it belongs to
    branch: torch.Tensor  # (B, T) 0: context, 1 … 4: that ending
    scored: torch.Tensor  # (M,) positions with something to score, counted through B·T
    targets: torch.Tensor  # (M, 4) what follows there, in each of the endings; IGNORE where it isn't theirs


@dataclasses.dataclass(frozen=True)
class Task:
    """What `evaluate` needs, made once by `prepare`."""

    examples: list[Example]  # all, in the file's order
    batches: list[Batch]  # this rank's
    note: str  # what had to be cut to fit the model, or ""


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of N examples, in the file's order, the same on each rank."""

    losses: torch.Tensor  # (N, 4) summed over the ending's tokens, in nats
    lengths: torch.Tensor  # (N, 4) tokens scored
    labels: torch.Tensor  # (N,)

    def predictions(self):
        """The ending of the lowest sum and that of the lowest mean, (N,) each."""
        return self.losses.argmin(1), (self.losses / self.lengths).argmin(1)

    def counts(self):
        """How many are right by sum, how many by mean, and of how many: (correct, correct_norm, total)."""
        by_sum, by_mean = self.predictions()
        return (by_sum == self.labels).sum().item(), (by_mean == self.labels).sum().item(), len(self.labels)


# ---- scoring ----


def evaluate(model, task, run):
    """The counts (correct, correct_norm, total) of `task`, summed over ranks; see `score`."""
    return score(model, task, run).counts()


def score(model, task, run, progress=False):
    """Score a `Task` with `model`, a GPT or a compiled or distributed wrapper of one; each rank must call it.

    The model and torch's random state stay as they are (see `inference.reading`). Batches are the same for any number
    of ranks, and so are the scores, to the last bit; another `batch_tokens` changes them by rounding only (below 1e-4
    in float32, some hundredths in bfloat16).
    """
    losses = torch.zeros(len(task.examples), ENDINGS, device=run.device)
    bar = tqdm(total=sum(len(batch.index) for batch in task.batches), unit="example", disable=not progress)
    so_far = torch.zeros(3, dtype=torch.long)
    with reading(model, run) as gpt, bar:
        for batch in task.batches:
            batch_losses = score_batch(gpt, batch, run.device)
            losses[batch.index.to(run.device)] = batch_losses
            if progress:
                examples = [task.examples[i] for i in batch.index.tolist()]
                so_far += torch.tensor(scores_of(examples, batch_losses).counts())
                acc, acc_norm = (so_far[:2] / so_far[2]).tolist()
                bar.set_postfix(acc=f"{acc:.4f}", acc_norm=f"{acc_norm:.4f}", refresh=False)
                bar.update(len(examples))
    run.sum(losses)  # each example has its losses on one rank and zeros on the others
    return scores_of(task.examples, losses)


def scores_of(examples, losses):
    lengths = torch.tensor([[len(ending) for ending in example.endings] for example in examples])
    return Scores(losses.cpu(), lengths, torch.tensor([example.label for example in examples]))


def score_batch(gpt, batch, device):
    """Summed losses of the endings, (B, 4), from float32 log-probabilities whatever the matrix products ran in."""
    B, T = batch.ids.shape
    ids, pos, branch, scored, targets = (
        t.to(device, non_blocking=True) for t in (batch.ids, batch.pos, batch.branch, batch.scored, batch.targets)
    )
    x = gpt.hidden(ids, SharedContext(pos, branch)).flatten(0, 1)[scored]  # (M, C)
    losses = torch.zeros(B * T, ENDINGS, device=device)
    for part in torch.arange(len(scored), device=device).split(LOGITS_AT_ONCE):
        logits = gpt.logits(x[part]).float()  # (m, V)
        target = targets[part]
        loss = logits.logsumexp(1, keepdim=True) - logits.gather(1, target.clamp(min=0))  # (m, 4)
        losses[scored[part]] = loss.masked_fill(target == IGNORE, 0)
    return losses.view(B, T, ENDINGS).sum(1)


class SharedContext:
    """Stands where `GPT.hidden` takes a cache, and stores nothing: it only says what stands where and who sees whom."""

    def __init__(self, pos, branch):
        T = branch.size(1)
        earlier = torch.ones(T, T, dtype=torch.bool, device=branch.device).tril()
        mine = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, T, T): query, key
        self.visible = (earlier & mine)[:, None]  # (B, 1, T, T)
        self.pos = pos

    def start(self, T):
        return self.pos

    def append(self, layer, k, v):
        return k, v, self.visible


# ---- examples ----


def prepare(run, tokenizer, block_size, *, data=None, limit=None, batch_tokens=None):
    """Read (or first download), encode and batch HellaSwag for a model of `block_size`, once. Each rank must call it.

    Only the master touches the file and the network; what it can't get raises the same `UserError` on each rank, so
    that training can say so and go on without. `data` is a file, None the original; `limit` takes its first examples.
    `batch_tokens` is how many tokens, padding included, run through the model at once; None: what suits the device.
    """
    batch_tokens = default_batch_tokens(run) if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise UserError(f"batch_tokens = {batch_tokens}: expected at least 1")
    if limit is not None and limit < 1:
        raise UserError(f"limit = {limit}: expected at least 1")
    records = run.from_master(lambda: read_records(data or original_file(), limit))
    examples, note = encode(records, tokenizer, block_size)
    groups = batch_by_length(examples, batch_tokens)[run.rank :: run.world_size]
    return Task(examples, [make_batch(examples, group) for group in groups], note)


def default_batch_tokens(run):
    """Few enough to stay in a CPU's caches; elsewhere enough to keep the device busy."""
    return 2048 if run.device.type == "cpu" else 16384


def read_records(path, limit=None):
    """The examples of a `.jsonl` file in the original's fields, checked: [(ind, label, ctx, endings), …]."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; expected HellaSwag's .jsonl") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if len(records) == limit:
            break
        if line.strip():
            records.append(read_record(line, f"{path}, line {number}"))
    if not records:
        raise UserError(f"{path} is empty: expected one HellaSwag example a line")
    return records


def read_record(line, where):
    try:
        fields = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is no JSON ({error}); is the file cut off?") from error
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected an object with ind, ctx, endings and label")
    ind, label, ctx, endings = (fields.get(name) for name in ("ind", "label", "ctx", "endings"))
    if type(ind) is not int:
        raise UserError(f"{where}: ind is {ind!r}, expected a number")
    if type(label) is not int or not 0 <= label < ENDINGS:
        raise UserError(f"{where}: label is {label!r}, expected 0, 1, 2 or 3")
    if not isinstance(ctx, str) or not ctx:
        raise UserError(f"{where}: ctx is {ctx!r}, expected a text")
    if not isinstance(endings, list) or len(endings) != ENDINGS or not all(isinstance(e, str) for e in endings):
        found = f"{len(endings)} of them" if isinstance(endings, list) else repr(endings)
        raise UserError(f"{where}: endings: {found}, expected {ENDINGS} texts")
    return ind, label, ctx, endings


def encode(records, tokenizer, block_size):
    """Texts → `Example`s that fit a context of `block_size`, and a note on what was cut.

    A context too long for its longest ending loses its beginning, for all four endings alike; an ending longer than
    `block_size` loses its end. At least one token of context stays, as it predicts the ending's first.
    """
    examples, cut_contexts, cut_endings = [], 0, 0
    for ind, label, ctx_text, ending_texts in records:
        ctx = tokenizer.encode(ctx_text)
        endings = [tokenizer.encode(" " + text) for text in ending_texts]
        cut_endings += any(len(ending) > block_size for ending in endings)
        endings = [ending[:block_size] for ending in endings]
        room = block_size + 1 - max(map(len, endings))  # an ending's last token isn't seen, only scored
        cut_contexts += len(ctx) > room
        examples.append(Example(ind, label, ctx[-room:], endings))
    note = f"{cut_contexts} of {len(examples)} contexts lost their beginning to fit block_size {block_size}"
    if cut_endings:
        note += f", and in {cut_endings} examples endings lost their end"
    return examples, note if cut_contexts or cut_endings else ""


def batch_by_length(examples, batch_tokens):
    """Lists of example numbers, longest first, each at most `batch_tokens` once padded (or one example)."""
    groups = []
    for i in sorted(range(len(examples)), key=lambda i: (-examples[i].row_length(), i)):
        if not groups or (len(groups[-1]) + 1) * examples[groups[-1][0]].row_length() > batch_tokens:
            groups.append([])
        groups[-1].append(i)
    return groups


def make_batch(examples, group):
    rows = [lay_out(examples[i]) for i in group]
    T = max(len(ids) for ids, _, _, _ in rows)
    padding = (0, 0, ENDINGS + 1, [IGNORE] * ENDINGS)
    ids, pos, branch, targets = (
        torch.tensor([row[column] + [fill] * (T - len(row[column])) for row in rows])
        for column, fill in enumerate(padding)
    )
    targets = targets.flatten(0, 1)  # (B·T, 4)
    scored = (targets != IGNORE).any(1).nonzero()[:, 0]
    return Batch(torch.tensor(group), ids, pos, branch, scored, targets[scored])


def lay_out(example):
    """One example as a row: ids, positions, branches, and what follows each token in each ending."""
    n = len(example.ctx)
    ids, pos, branch = list(example.ctx), list(range(n)), [0] * n
    targets = [[IGNORE] * ENDINGS for _ in range(n - 1)] + [[ending[0] for ending in example.endings]]
    for i, ending in enumerate(example.endings):
        ids += ending[:-1]
        pos += range(n, n + len(ending) - 1)
        branch += [i + 1] * (len(ending) - 1)
        targets += [[token if i == j else IGNORE for j in range(ENDINGS)] for token in ending[1:]]
    return ids, pos, branch, targets


# ---- the original file ----


def original_file():
    """The path of the original validation file, downloaded where it isn't there yet, its checksum verified."""
    if not DEFAULT_PATH.exists():
        download(URL, DEFAULT_PATH, SHA256, "to use another copy, pass --data FILE")
    if hashlib.sha256(DEFAULT_PATH.read_bytes()).hexdigest() != SHA256:
        raise UserError(
            f"{DEFAULT_PATH} isn't the original file (its checksum differs): delete it, or pass --data FILE"
        )
    return DEFAULT_PATH


# ---- the command ----


@dataclasses.dataclass(frozen=True)
class Config:
    """Score a model on HellaSwag. Runs under torchrun, too."""

    model: str = "gpt2"
    """gpt2 … gpt2-xl, a folder in Hugging Face's format, or a checkpoint"""
    data: str | None = None
    """a .jsonl file in the original's fields; by default the original's 10,042 validation examples, downloaded once"""
    limit: int | None = None
    """score only so many examples, the file's first"""
    batch_tokens: int | None = None
    """tokens that run through the model at once, by default 2048 on a CPU and 16384 elsewhere"""
    out: str | None = None
    """write one JSON line an example: ind, label, losses, lengths, pred, pred_norm"""
    overwrite: bool = False
    """let --out replace a file that is there"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format of matrix products; auto: bfloat16 where the hardware computes in it"""

    def check(self):
        if self.out and os.path.exists(self.out) and not self.overwrite:
            raise UserError(f"--out {self.out} is there already: pass --overwrite, or another name")
        if self.out and not os.path.isdir(os.path.dirname(self.out) or "."):
            raise UserError(f"--out {self.out}: its folder doesn't exist")


@command
def main(argv=None):
    config = configure(Config, argv)
    run = runtime.start(config.device, config.dtype)
    try:
        model_file = read(config.model)
        if model_file.tokenizer is None:
            raise UserError(f"{model_file.source}: its tokenizer is unknown, so HellaSwag can't be encoded for it")
        gpt = GPT.from_file(model_file).to(run.device)
        block_size = gpt.config.block_size
        options = {"data": config.data, "limit": config.limit, "batch_tokens": config.batch_tokens}
        task = prepare(run, get_tokenizer(model_file.tokenizer), block_size, **options)
        dtype = str(run.dtype).split(".")[1]
        run.print(f"{model_file.source} on {run.device} in {dtype}, {len(task.examples)} examples")
        if task.note:
            run.print(task.note)
        scores = score(gpt, task, run, progress=run.master)
        report(run, scores, gpt.config)
        if config.out and run.master:
            write_scores(config.out, task.examples, scores)
            run.print(f"scores written to {config.out}")
    finally:
        run.stop()


def report(run, scores, config):
    correct, correct_norm, n = scores.counts()
    run.print(f"acc: {correct}/{n}={correct / n:.4f}  acc_norm: {correct_norm}/{n}={correct_norm / n:.4f}")
    low, high, low_norm, high_norm = *interval(correct, n), *interval(correct_norm, n)
    run.print(f"95% interval: acc {low:.4f} to {high:.4f}, acc_norm {low_norm:.4f} to {high_norm:.4f}")
    figures = published.HELLASWAG.get((config.n_layer, config.n_embd), {})
    if figures:
        run.print("published acc_norm: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))


def interval(successes, n, z=1.96):
    """The 95% confidence interval of a share (Wilson 1927)."""
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    spread = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - spread, middle + spread


def write_scores(path, examples, scores):
    by_sum, by_mean = scores.predictions()
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
