"""Scoring compared with plain loops over examples and windows, a forward pass, and the harness's own model."""

import functools

import torch
from torch.nn import functional as F

from benchmarks import harness
from benchmarks.generate import hugging_face
from benchmarks.measure import Row, time_in_turn
from inference import perplexity
from inference.multiple_choice import Example, make_task, score
from model import GPT, GPTConfig
from ops.cross_entropy import IGNORE
from system import runtime
from tokens.tokenizer import get_tokenizer
from training.costs import matmul_peak

LETTERS = 1600  # of each text that perplexity is measured on: two windows of 1,024 bytes


def run(settings):
    rt = runtime.start(settings.device, settings.dtype)
    gpt = GPT(GPTConfig()).to(rt.device).eval()
    hf = hugging_face(rt)
    T = gpt.config.block_size
    strides = [row for stride in (T, T // 2) for row in perplexity_rows(settings, rt, gpt, hf, stride)]
    return [*hellaswag_rows(settings, rt, gpt, hf), *strides, *harness.rows(settings, rt, gpt)]


def hellaswag_rows(settings, rt, gpt, hf):
    config = gpt.config
    examples = random_examples(128 if rt.device.type == "cpu" else 2048, config.vocab_size)
    task = make_task(examples, rt)
    few = examples[:: max(1, len(examples) // 16)]  # the baselines are slow, and their time per example is steady
    seconds = time_in_turn(
        {
            "ours": lambda: score(gpt, task, rt).counts(),
            "loop": lambda: [score_one(gpt, example, rt) for example in few],
            "hf": lambda: [score_one(lambda ids: hf(ids).logits, example, rt) for example in few],
        },
        runs=settings.runs,
        synchronize=rt.synchronize,
    )
    ours, spread = len(examples) / seconds["ours"][0], seconds["ours"][1]
    limit = matmul_peak(rt.device, rt.dtype) / flops_per_example(examples, config)
    name = f"hellaswag/124M/{settings.dtype}"
    note = f"{len(examples)} random examples with the lengths of real ones; spread {spread:.0%}"
    return [
        Row(name, "examples/s", ours, len(few) / seconds["loop"][0], "one at a time", limit, note),
        Row(name, "examples/s", ours, len(few) / seconds["hf"][0], "one at a time, Hugging Face", limit, note),
    ]


def perplexity_rows(settings, rt, gpt, hf, stride):
    """Random bytes, as ids of GPT-2's vocabulary: the same work as any text, and no vocabulary to download."""
    config, tokenizer = gpt.config, get_tokenizer("byte")
    letters = torch.randint(32, 127, (4 if rt.device.type == "cpu" else 128, LETTERS)).tolist()
    texts = [bytes(row).decode() for row in letters]
    windowing = perplexity.Windowing(config.block_size, stride)
    documents = [[tokenizer.eot, *tokenizer.encode(text)] for text in texts]
    windows = [(ids, *span) for ids in documents for span in perplexity.spans(len(ids), windowing.T, windowing.stride)]
    few = windows[: len(windows) // len(documents)]  # of one document: the baselines are slow, and their time is steady
    blocks = [torch.randint(config.vocab_size, (2, config.block_size), device=rt.device) for _ in range(2)]
    seconds = time_in_turn(
        {
            "ours": functools.partial(perplexity.score, gpt, tokenizer, texts, windowing, rt),
            "forward": lambda: forward(gpt, *blocks, rt),
            "hf": lambda: [score_window(lambda ids: hf(ids).logits, window, rt) for window in few],
        },
        runs=settings.runs,
        synchronize=rt.synchronize,
    )
    inputs, scored = (sum(column) for column in zip(*((w[2] - w[1], w[3]) for w in windows), strict=True))
    ours = scored / seconds["ours"][0]
    plain = blocks[0].numel() / seconds["forward"][0] * scored / inputs
    theirs = sum(window[3] for window in few) / seconds["hf"][0]
    limit = scored * matmul_peak(rt.device, rt.dtype) / flops(inputs, scored, config)
    name = f"perplexity/124M/{settings.dtype}/stride{stride}"
    note = f"windows of {windowing.T}; spread {seconds['ours'][1]:.0%}"
    return [
        Row(name, "tok/s", ours, plain, "plain forward of as many tokens, with loss", limit, note),
        Row(name, "tok/s", ours, theirs, "one window at a time, Hugging Face", limit, note),
    ]


@torch.no_grad()
def forward(gpt, idx, targets, rt):
    """The loss of a batch, with the logits of all its positions."""
    with rt.autocast():
        return gpt(idx, targets).item()


@torch.no_grad()
def score_window(logits_of, window, rt):
    """The plain way: one row, all logits, the losses of the last `scored` targets."""
    ids, start, stop, scored = window
    ids = torch.tensor(ids[start : stop + 1], device=rt.device)
    targets = ids[1:].clone()
    targets[:-scored] = IGNORE
    with rt.autocast():
        logits = logits_of(ids[None, :-1])
    return F.cross_entropy(logits[0].float(), targets, ignore_index=IGNORE, reduction="sum").item()


def random_examples(n, vocab_size):
    """Random ids in lengths like those of HellaSwag's first 1,000 examples: contexts of 25 tokens, endings of 14."""
    g = torch.Generator().manual_seed(0)

    def ids(shortest, longest):
        length = torch.randint(shortest, longest + 1, (), generator=g).item()
        return torch.randint(vocab_size, (length,), generator=g).tolist()

    return [Example(i, i % 4, ids(8, 42), [ids(5, 23) for _ in range(4)]) for i in range(n)]


@torch.no_grad()
def score_one(logits_of, example, rt):
    """The plain way: four padded rows of context and ending, all logits, the losses of the endings' tokens."""
    n = len(example.ctx)
    rows = [torch.tensor(example.ctx + ending) for ending in example.endings]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(rt.device)  # (4, T)
    with rt.autocast():
        logits = logits_of(ids)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(4, -1)
    sums = torch.stack([loss[n - 1 : len(row) - 1].sum() for loss, row in zip(losses, rows, strict=True)])
    return sums.argmin().item()


def flops_per_example(examples, config):
    """FLOPs that scoring an example needs on average."""
    scored = sum(example.row_length() - len(example.ctx) + 1 for example in examples)
    inputs = sum(example.row_length() for example in examples)
    return flops(inputs, scored, config) / len(examples)


def flops(inputs, scored, config):
    """FLOPs of scoring: each matrix once per input token, the head once per scored position.

    Attention itself is left out: some 2% in HellaSwag, 9% in windows of 1,024 tokens.
    """
    matrices = 12 * config.n_layer * config.n_embd**2
    head = config.vocab_size * config.n_embd
    return 2 * (inputs * matrices + scored * head)
