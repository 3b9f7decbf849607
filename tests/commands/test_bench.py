"""What bench.py computes from its measurements."""

import math

import pytest

from bench import Settings
from benchmarks import tokens
from system.errors import UserError


class Measured(tokens.Benchmark):
    """A benchmark whose runs end with a loss of 9 - ln(steps), more by the distance from AdamW's best settings."""

    def __init__(self):
        super().__init__(Settings(verb=("tokens",), steps=1000, batch=64), stop=None)

    def final_loss(self, recipe, seed, steps=None):
        away = (recipe["max_lr"] != 4e-3) + (recipe["beta2"] != 0.95) + (recipe["warmup_steps"] != 300)
        return 9 - math.log(steps or 1000) + 0.1 * away


def test_bench_tokens_tunes_adamw_setting_by_setting():
    best = Measured().tune()
    assert best == {"optimizer": "adamw", "max_lr": 4e-3, "beta2": 0.95, "warmup_steps": 300}


def test_bench_tokens_interpolates_the_length_that_reaches_a_loss():
    bench, recipe = Measured(), {"max_lr": 4e-3, "beta2": 0.95, "warmup_steps": 300}
    for steps in (350, 537, 800):
        assert bench.tokens_to_reach(9 - math.log(steps), recipe, 1) == pytest.approx(64 * steps)
    assert bench.tokens_to_reach(9 - math.log(349), recipe, 1) is None
    assert bench.tokens_to_reach(9 - math.log(801), recipe, 1) is None


def test_bench_tokens_row_has_the_mean_and_the_spread_of_the_seeds():
    row = tokens.row("tokens/64/muon", [600.0, None, 800.0], 1000)
    assert (row.ours, row.baseline) == (700.0, 1000)
    assert row.ratio == pytest.approx(1000 / 700)
    assert "0.7000 (0.6000 … 0.8000); 1 of 3 seeds" in row.note
    assert tokens.row("tokens/64/muon", [None], 1000).ratio is None


def test_bench_names_its_verbs(tmp_path):
    with pytest.raises(UserError, match=r"expected one of data, train, optimizer, ladder, generate, eval, all, tokens"):
        Settings(verb=("speed",)).check()
    with pytest.raises(UserError, match=r"holds no tokens: python prepare\.py stdlib --tokenizer byte"):
        tokens.check_data(Settings(verb=("tokens",), data_dir=str(tmp_path)))
