"""HellaSwag examples per second, compared with the plain loop: one example at a time, one full row per ending."""

import torch
from torch.nn import functional as F

from benchmarks.generate import hugging_face
from benchmarks.measure import Row, time_in_turn
from inference.multiple_choice import Example, make_task, score
from model import GPT, GPTConfig
from system import runtime
from training.costs import matmul_peak


def run(settings):
    rt = runtime.start(settings.device, settings.dtype)
    config = GPTConfig()
    gpt = GPT(config).to(rt.device).eval()
    hf = hugging_face(rt)
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
    """FLOPs that scoring needs on average: each matrix once per input token, the head once per scored position.

    Attention itself, some 2% at these lengths, is left out.
    """
    matrices = 12 * config.n_layer * config.n_embd**2
    head = config.vocab_size * config.n_embd
    scored = [example.row_length() - len(example.ctx) + 1 for example in examples]
    inputs = [example.row_length() for example in examples]
    return 2 * (sum(inputs) * matrices + sum(scored) * head) / len(examples)
