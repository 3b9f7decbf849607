"""Requests of a harness: answers equal one request at a time, for any batch and any number of ranks."""

import pytest
import torch
from torch.nn import functional as F

from inference.generate import GenerationConfig, generate
from inference.requests import Prompt, generate_until, loglikelihoods, share_contexts
from inference.sampling import GREEDY, Sampling
from model import GPTConfig
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
BYTE = get_tokenizer("byte")


class OneOfSeveral(Runtime):
    """A rank whose all-reduce does nothing, so that the test can add the ranks' results itself."""

    def sum(self, tensor):
        return tensor


def random_pairs():
    """Continuations that share contexts, that are alone, and that do not fit in the model."""
    g = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(257, (length,), generator=g).tolist()

    shared, long = ids(7), ids(50)
    pairs = [(shared, ids(1 + i % 5)) for i in range(20)] + [(ids(1 + i), ids(3)) for i in range(10)]
    return [*pairs, (long, ids(4)), (long, ids(4)), (long, ids(9)), (ids(3), ids(32))]


@torch.no_grad()
def one_at_a_time(logits_of, context, continuation):
    ids = torch.tensor((context + continuation)[-33:])
    logits = logits_of(ids[None, :-1])[0, -len(continuation) :].float()
    targets = ids[-len(continuation) :]
    return -F.cross_entropy(logits, targets, reduction="sum").item(), torch.equal(logits.argmax(1), targets)


@pytest.mark.parametrize("batch_tokens", [1, 100, 10**6])
def test_loglikelihoods_equal_one_request_at_a_time(make_gpt, batch_tokens):
    gpt, pairs = make_gpt(CONFIG).eval(), random_pairs()
    pairs[3] = (pairs[3][0], generate(gpt, [pairs[3][0]], GenerationConfig(4, GREEDY))[0])
    logprobs, greedy = loglikelihoods(gpt, pairs, CPU, batch_tokens)
    expected = [one_at_a_time(gpt, *pair) for pair in pairs]
    torch.testing.assert_close(logprobs, torch.tensor([e[0] for e in expected]), atol=1e-4, rtol=1e-6)
    assert greedy.tolist() == [e[1] for e in expected]
    assert greedy[3]


def test_loglikelihoods_do_not_depend_on_the_number_of_ranks(make_gpt):
    gpt, pairs = make_gpt(CONFIG), random_pairs()
    expected, _ = loglikelihoods(gpt, pairs, CPU, 64)
    ranks = [OneOfSeveral(CPU.device, CPU.dtype, rank, 3) for rank in range(3)]
    assert torch.equal(sum(loglikelihoods(gpt, pairs, rt, 64)[0] for rt in ranks), expected)


def test_share_contexts_puts_continuations_of_a_context_into_one_row():
    pairs = random_pairs()
    examples, members = share_contexts(pairs, 32)
    assert len(examples) < len(pairs) - 10
    assert all(example.row_length() <= 32 for example in examples)
    assert sorted(number for numbers in members for number in numbers) == list(range(len(pairs)))


def test_generate_until_ends_at_a_stop_string(make_gpt):
    gpt = make_gpt(CONFIG).eval()
    contexts = [BYTE.encode(text) for text in ("one", "two and three", "x" * 40)]
    room = 32 - 12
    free = [
        BYTE.decode(generate(gpt, [ids[-room:]], GenerationConfig(12, GREEDY, eot=BYTE.eot))[0]) for ids in contexts
    ]
    stop = free[0][2:4]
    prompts = [Prompt(tuple(ids), (stop, "never in it"), 12, Sampling(temperature=0)) for ids in contexts]
    prompts.append(Prompt(tuple(contexts[0]), (), 5, GREEDY))
    expected = [text.partition(stop)[0] for text in free] + [free[0][:5]]
    assert generate_until(gpt, BYTE, prompts, CPU) == expected


def test_generate_ends_a_row_where_on_token_returns_true(make_gpt):
    gpt, seen = make_gpt(CONFIG).eval(), []
    config = GenerationConfig(8, GREEDY)
    rows = generate(gpt, [[1], [2]], config, lambda row, token: seen.append(row) or (row == 0 and len(seen) > 3))
    assert (len(rows[0]), len(rows[1])) == (3, 8)
    assert rows[1] == generate(gpt, [[1], [2]], config)[1]
