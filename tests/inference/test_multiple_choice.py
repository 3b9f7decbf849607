"""Multiple choice: losses equal scoring one ending at a time, for any batching and any number of ranks."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from inference.multiple_choice import Example, Scores, make_task, score
from model import GPTConfig
from system.runtime import Runtime

CONFIG = GPTConfig(block_size=64, vocab_size=257, n_layer=2, n_head=2, n_embd=32)


def random_examples(n, vocab_size, endings=4):
    """Examples whose contexts and endings have many different lengths."""
    g = torch.Generator().manual_seed(0)

    def ids(length):
        return torch.randint(vocab_size, (length,), generator=g).tolist()

    ids_of_endings = [[ids(1 + (i + j) % 6) for j in range(endings)] for i in range(n)]
    return [Example(i, i % endings, ids(1 + 7 * i % 43), ids_of_endings[i]) for i in range(n)]


@torch.no_grad()
def losses_one_at_a_time(logits_of, example, device):
    """The summed loss of each ending's tokens, from one forward pass per ending."""
    losses = []
    for ending in example.endings:
        ids = torch.tensor(example.ctx + ending, device=device)
        logits = logits_of(ids[None, :-1])[0].float()
        each = F.cross_entropy(logits, ids[1:], reduction="none")
        losses.append(each[len(example.ctx) - 1 :].sum().item())
    return losses


def check_scores(scores, examples, logits_of, device):
    by_sum, by_mean = scores.predictions()
    for i, example in enumerate(examples):
        expected = torch.tensor(losses_one_at_a_time(logits_of, example, device))
        lengths = torch.tensor([len(ending) for ending in example.endings])
        torch.testing.assert_close(scores.losses[i], expected, atol=1e-4, rtol=0)
        assert torch.equal(scores.lengths[i], lengths)
        assert by_sum[i] == expected.argmin()
        assert by_mean[i] == (expected / lengths).argmin()


@pytest.mark.parametrize("endings", [2, 4])
def test_score_equals_one_ending_at_a_time(make_gpt, endings, rt):
    gpt, examples = make_gpt(CONFIG).eval(), random_examples(37, 257, endings)
    check_scores(score(gpt, make_task(examples, rt, batch_tokens=300), rt), examples, gpt, rt.device)


@pytest.mark.cpu
def test_score_equals_hugging_face_logits(hugging_face, rt):
    hf, gpt = hugging_face
    examples = random_examples(8, 50257)
    check_scores(
        score(gpt, make_task(examples, rt, batch_tokens=128), rt), examples, lambda ids: hf(ids).logits, rt.device
    )


def test_score_does_not_depend_on_batch_tokens(make_gpt, rt):
    gpt, examples = make_gpt(CONFIG), random_examples(37, 257)
    tasks = [make_task(examples, rt, batch_tokens) for batch_tokens in (1, 150, 600, 10**6)]
    assert (len(tasks[0].batches), len(tasks[-1].batches)) == (37, 1)
    scores = [score(gpt, task, rt) for task in tasks]
    for other in scores[1:]:
        torch.testing.assert_close(other.losses, scores[0].losses, atol=1e-4, rtol=0)
        assert other.counts() == scores[0].counts()


class OneOfSeveral(Runtime):
    """A rank whose all-reduce does nothing, so that the test can add the ranks' results itself."""

    def sum(self, tensor):
        return tensor


@pytest.mark.parametrize("world_size", [2, 3])
def test_score_does_not_depend_on_the_number_of_ranks(make_gpt, world_size, rt):
    gpt, examples = make_gpt(CONFIG), random_examples(37, 257)
    losses = 0
    for rank in range(world_size):
        part = OneOfSeveral(rt.device, rt.dtype, rank, world_size)
        losses = losses + score(gpt, make_task(examples, part, 300), part).losses
    assert torch.equal(losses, score(gpt, make_task(examples, rt, 300), rt).losses)


def test_score_in_bfloat16_is_close_to_float32(make_gpt, rt):
    gpt, task = make_gpt(CONFIG), make_task(random_examples(37, 257), rt)
    exact = score(gpt, task, rt).losses
    rough = score(gpt, task, Runtime(rt.device, torch.bfloat16)).losses
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.5, rtol=0.02)


def test_score_disables_dropout_and_leaves_training_state_unchanged(make_gpt, rt):
    task = make_task(random_examples(37, 257), rt)
    expected = score(make_gpt(CONFIG), task, rt).losses
    gpt = make_gpt(dataclasses.replace(CONFIG, dropout=0.5)).train()
    state = torch.get_rng_state()
    torch.testing.assert_close(score(torch.compile(gpt, backend="eager"), task, rt).losses, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in gpt.modules())


def test_counts_by_sum_and_by_mean():
    losses = torch.tensor([[4.0, 5, 6, 7], [8, 6, 7, 9], [1, 2, 3, 4]])
    lengths = torch.tensor([[1, 5, 2, 2], [2, 2, 2, 9], [1, 1, 1, 1]])
    assert Scores(losses, lengths, torch.tensor([0, 3, 0])).counts() == (2, 2, 3)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_predicts_on_a_gpu_what_it_predicts_on_a_cpu(make_gpt, device, dtype):
    """Every prediction in float32; in bfloat16 those where the two best endings are not within its rounding."""
    gpt, examples = make_gpt(CONFIG), random_examples(200, 257)
    runtimes = Runtime(device, dtype), Runtime(torch.device("cpu"), torch.float32)
    ours, expected = (score(gpt.to(rt.device), make_task(examples, rt), rt) for rt in runtimes)
    best = expected.losses.topk(2, dim=1, largest=False).values
    clear = best[:, 1] - best[:, 0] > (1e-3 if dtype == torch.float32 else 1.0)
    assert clear.float().mean() > 0.5
    assert torch.equal(ours.losses.argmin(1)[clear], expected.losses.argmin(1)[clear])
