"""The formulas of cost equal what is counted."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import budget
from model import GPT, GPTConfig

SIZES = {
    "gpt2": ((12, 12, 768), 124_439_808),
    "gpt2-medium": ((24, 16, 1024), 354_823_168),
    "gpt2-large": ((36, 20, 1280), 774_030_080),
    "gpt2-xl": ((48, 25, 1600), 1_557_611_200),
}


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_the_published_ones(name):
    (n_layer, n_head, n_embd), count = SIZES[name]
    assert budget.count_params(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)) == count


def test_the_count_leaves_the_padding_out():
    config = GPTConfig(block_size=16, vocab_size=200, n_layer=3, n_head=2, n_embd=32)
    total = sum(p.numel() for p in GPT(config).parameters())
    assert budget.count_params(config) == total - (256 - 200) * 32


def test_flops_are_those_that_torch_counts():
    config = GPTConfig(block_size=128, vocab_size=256, n_layer=3, n_head=2, n_embd=64)
    model, idx = GPT(config), torch.randint(256, (2, 128))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it can count these products
        model(idx, idx).backward()
    biases_and_norms = 6 * config.n_layer * 13 * config.n_embd + 6 * 2 * config.n_embd  # in N, but no products
    expected = (budget.flops_per_token(config, 128) - biases_and_norms) * idx.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.001)


def test_mfu_of_a_known_case():
    config = GPTConfig()
    per_token = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert budget.flops_per_token(config, 1024) == per_token
    assert budget.mfu(config, 1024, tokens_per_s=1e6, peak=989e12) == pytest.approx(per_token * 1e6 / 989e12)
