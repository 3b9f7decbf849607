"""How fast HellaSwag is scored, beside the obvious loop: one example at a time, its four endings as four whole rows."""

import torch
from torch.nn import functional as F

import hellaswag
from benchmarks.measure import Row, time_in_turn
from model import GPT, GPTConfig
from system import runtime
from training.costs import matmul_peak


def run(settings):
    device_run = runtime.start(settings.device, settings.dtype)
    config = GPTConfig()
    gpt = GPT(config).to(device_run.device).eval()
    hf = hugging_face(config, device_run)
    examples = made_up_examples(128 if device_run.device.type == "cpu" else 2048, config.vocab_size)
    groups = hellaswag.batch_by_length(examples, hellaswag.default_batch_tokens(device_run))
    task = hellaswag.Task(examples, [hellaswag.make_batch(examples, group) for group in groups], "")
    few = examples[:: max(1, len(examples) // 16)]  # enough for a steady figure of the slow ones
    seconds = time_in_turn(
        {
            "ours": lambda: hellaswag.evaluate(gpt, task, device_run),
            "loop": lambda: [one_at_a_time(gpt, example, device_run) for example in few],
            "hf": lambda: [one_at_a_time(lambda ids: hf(ids).logits, example, device_run) for example in few],
        },
        runs=settings.runs,
        synchronize=device_run.synchronize,
    )
    ours, spread = len(examples) / seconds["ours"][0], seconds["ours"][1]
    limit = matmul_peak(device_run.device, device_run.dtype) / flops_an_example(examples, config)
    name = f"hellaswag/124M/{settings.dtype}"
    note = f"{len(examples)} made-up examples as long as real ones; spread {spread:.0%}"
    return [
        Row(name, "examples/s", ours, len(few) / seconds["loop"][0], "one at a time", limit, note),
        Row(name, "examples/s", ours, len(few) / seconds["hf"][0], "one at a time, Hugging Face", limit, note),
    ]


def hugging_face(config, device_run):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()).to(device_run.device, device_run.dtype).eval()


def made_up_examples(n, vocab_size):
    """Random ids in lengths like those of HellaSwag's first 1,000 examples: contexts of 25 tokens, endings of 14."""
    g = torch.Generator().manual_seed(0)

    def ids(shortest, longest):
        length = torch.randint(shortest, longest + 1, (), generator=g).item()
        return torch.randint(vocab_size, (length,), generator=g).tolist()

    return [hellaswag.Example(i, i % 4, ids(8, 42), [ids(5, 23) for _ in range(4)]) for i in range(n)]


@torch.no_grad()
def one_at_a_time(logits_of, example, device_run):
    """The obvious way: four rows of context and ending, padded; all logits; the loss of the ending's tokens."""
    n = len(example.ctx)
    rows = [torch.tensor(example.ctx + ending) for ending in example.endings]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device_run.device)  # (4, T)
    with device_run.autocast():
        logits = logits_of(ids)
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none").view(4, -1)
    sums = torch.stack([loss[n - 1 : len(row) - 1].sum() for loss, row in zip(losses, rows, strict=True)])
    return sums.argmin().item()


def flops_an_example(examples, config):
    """What can't be avoided, on average: each matrix once for each token seen, the head where something is scored.

    Attention itself, some 2% at these lengths, is left out.
    """
    matrices = 12 * config.n_layer * config.n_embd**2
    head = config.vocab_size * config.n_embd
    scored = [example.row_length() - len(example.ctx) + 1 for example in examples]
    seen = [example.row_length() for example in examples]
    return 2 * (sum(seen) * matrices + sum(scored) * head) / len(examples)
