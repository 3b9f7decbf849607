"""Sampling: drawn ids follow the softmax, top-k and top-p; draws depend only on seed and row."""

import math

import pytest
import torch

from inference.sampling import GREEDY, Sampling, next_ids, uniforms
from system.errors import UserError


def chi_squared(counts, probs):
    """Chi-squared over the ids expected at least five times, and the value exceeded by chance once in 10,000."""
    n = counts.sum()
    kept = probs * n >= 5
    statistic = ((counts[kept] - n * probs[kept]) ** 2 / (n * probs[kept])).sum().item()
    degrees = kept.sum().item() - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson & Hilferty 1931
    return statistic, limit


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_k", [0, 10, 97])
def test_next_ids_frequencies_match_the_softmax(temperature, top_k):
    logits = torch.randn(97, generator=torch.Generator().manual_seed(1)) * 2
    n = 100_000
    drawn = next_ids(logits.expand(n, -1), uniforms(5, 1, n)[0], Sampling(temperature, top_k))
    expected = logits.clone()
    if top_k:
        expected[expected < logits.topk(top_k).values[-1]] = -torch.inf
    probs = torch.softmax(expected / temperature, 0)
    counts = torch.bincount(drawn, minlength=97).float()
    assert counts[probs == 0].sum() == 0
    statistic, limit = chi_squared(counts, probs)
    assert statistic < limit


def test_uniforms_consecutive_draws_are_independent():
    pairs = (uniforms(7, 1, 100_000)[0] * 10).long().view(-1, 2)
    counts = torch.bincount(pairs[:, 0] * 10 + pairs[:, 1], minlength=100).float()
    statistic, limit = chi_squared(counts, torch.full((100,), 0.01))
    assert statistic < limit


def test_top_p_keeps_the_fewest_ids_that_reach_it():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    u = torch.linspace(0, 1, 1001)[:-1]
    for top_p, kept in ((0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.91, {0, 1, 2, 3})):
        drawn = next_ids(logits.expand(1000, -1), u, Sampling(top_p=top_p))
        assert set(drawn.tolist()) == kept, top_p
        share = (drawn == 1).float().mean().item()
        assert share == pytest.approx(0.4 / sum(logits[i].exp().item() for i in kept), abs=2e-3)


def test_sampling_limits_are_greedy_or_unrestricted():
    logits = torch.randn(1000, 97, generator=torch.Generator().manual_seed(2))
    u = uniforms(0, 1, 1000)[0]
    argmax = logits.argmax(-1)
    for sampling in (GREEDY, Sampling(top_k=1), Sampling(top_p=0), Sampling(top_p=1e-6), Sampling(temperature=1e-4)):
        assert torch.equal(next_ids(logits, u, sampling), argmax), sampling
    assert not torch.equal(next_ids(logits, u, Sampling()), argmax)
    assert next_ids(logits, u, Sampling(top_k=10**6)).max() < 97


def test_next_ids_smallest_and_largest_draw_choose_an_id_with_probability():
    first = next_ids(torch.tensor([[-torch.inf, 0.0, 0.0]]), torch.zeros(1), Sampling())
    assert first.item() == 1
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).repeat(2, 1)
    logits[1, 3] = 0
    last = torch.full((2,), 1 - 2**-24)  # the largest value of torch.rand
    assert next_ids(logits, last, Sampling()).tolist() == [2, 3]
    assert next_ids(logits[:1], last[:1], Sampling(top_k=2)).item() == 0
    many = torch.randn(20_000, 50, generator=torch.Generator().manual_seed(0)) * 3  # totals just above and below 1
    many[:, 40:] = -torch.inf
    assert next_ids(many, last[:1].expand(20_000), Sampling()).max() < 40


@pytest.mark.parametrize(("name", "value"), [("temperature", -1), ("top_k", -1), ("top_p", 1.5), ("top_p", math.nan)])
def test_sampling_refuses_values_out_of_range(name, value):
    with pytest.raises(UserError, match=f"{name} = {value}: expected"):
        Sampling(**{name: value})
