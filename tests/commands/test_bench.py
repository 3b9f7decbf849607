"""What bench.py computes from its measurements, which are replaced."""

import json
import math

import pytest
import torch

import bench
from bench import Settings
from benchmarks import scaling, tokens
from benchmarks.train import Result
from model import GPTConfig
from system.errors import UserError
from training import costs

PEAK = 1e12


class Measured(tokens.Benchmark):
    """A benchmark whose runs end with a loss of 9 - ln(steps), more by the distance from AdamW's best settings."""

    def __init__(self):
        super().__init__(Settings(verb=("tokens",), steps=1000, batch=64), stop=None)
        self.trained, self.rates = [], []

    def final_loss(self, recipe, seed, steps=None):
        self.trained.append(steps)
        self.rates.append(recipe["max_lr"])
        away = (recipe["max_lr"] != 2e-3) + (recipe["beta2"] != 0.95) + (recipe["warmup"] != 0.3)
        return 9 - math.log(steps or 1000) + 0.1 * away


def test_bench_refuses_a_setting_of_another_verb():
    with pytest.raises(UserError, match=r"--seeds is for bench\.py tokens, not for train"):
        Settings(verb=("train",), seeds=1).check()
    Settings(verb=("tokens",), seeds=1).check()


def test_bench_tokens_tunes_adamw_setting_by_setting():
    bench = Measured()
    assert bench.tune() == {"optimizer": "adamw", "max_lr": 2e-3, "beta2": 0.95, "warmup": 0.3}
    assert bench.rates[:4] == [4e-3, 8e-3, 2e-3, 1e-3], "from the start up, then down, until a loss is worse"
    assert set(bench.rates[4:]) == {2e-3}


def test_bench_tokens_interpolates_the_length_that_reaches_a_loss():
    bench, recipe = Measured(), {"max_lr": 2e-3, "beta2": 0.95, "warmup": 0.3}
    for steps in (151, 350, 537, 1000):
        assert bench.tokens_to_reach(9 - math.log(steps), recipe, 1) == pytest.approx(64 * steps)
    for steps in (149, 1001):
        assert bench.tokens_to_reach(9 - math.log(steps), recipe, 1) is None


def test_bench_tokens_trains_no_longer_than_it_must():
    bench = Measured()
    bench.tokens_to_reach(9 - math.log(400), {"max_lr": 2e-3, "beta2": 0.95, "warmup": 0.3}, 1)
    assert bench.trained == [150, 250, 350, 500]


def test_bench_tokens_row_has_the_mean_and_the_spread_of_the_seeds():
    row = tokens.row("tokens/64/muon", [600.0, None, 800.0], 1000)
    assert (row.ours, row.baseline) == (700.0, 1000)
    assert row.ratio == pytest.approx(1000 / 700)
    assert "0.7000 (0.6000 … 0.8000); 1 of 3 seeds" in row.note
    assert tokens.row("tokens/64/muon", [None], 1000).ratio is None


def test_bench_names_its_verbs(tmp_path):
    with pytest.raises(UserError, match="one of data, train, scaling, optimizer, ladder, generate, eval, all, tokens"):
        Settings(verb=("speed",)).check()
    with pytest.raises(UserError, match=r"holds no tokens: python prepare\.py stdlib --tokenizer byte"):
        tokens.check_data(Settings(verb=("tokens",), data_dir=str(tmp_path)))


def fake_measure(variant, threads=None):
    """A step takes 1 ms a token and 10 ms, with two threads half of it; memory grows by 1 MB a token."""
    tokens = variant.B * variant.T
    return Result([(tokens + 10) / 1e3 / threads] * 3, 1.0, 10**9 + tokens * 10**6, 3.0)


@pytest.fixture
def no_measurements(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scaling, "measure", fake_measure)
    monkeypatch.setattr(scaling, "cpu_count", lambda: 6)
    monkeypatch.setattr(costs, "peak_flops", lambda device, dtype: PEAK)
    monkeypatch.setattr(bench, "matmul_peak", lambda *args, **options: PEAK)
    monkeypatch.setattr(bench, "memory_bandwidth", lambda device: 1e10)


def test_bench_scaling_writes_speed_and_memory_of_each_point_and_a_chart(no_measurements, tmp_path, capsys):
    bench.main(["scaling", "--device=cpu", "--dtype=float32", "--json=rows.json"])
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    lines = {"T": (64, 128, 256, 512, 1024), "B": (1, 2, 4, 8), "threads": (1, 2, 4, 6)}
    names = [f"scaling/{varies}={value}" for varies, values in lines.items() for value in values]
    assert list(rows) == [name + suffix for name in names for suffix in ("", "/memory")]
    row = rows["scaling/threads=4"]
    assert row["ours"] == pytest.approx(1024 / (1.034 / 4))
    assert row["ratio"] == pytest.approx(4)
    assert row["limit"] == pytest.approx(PEAK / costs.flops_per_token(GPTConfig(), 256))
    threads = torch.get_num_threads()
    assert rows["scaling/B=8"]["ours"] == pytest.approx(1024 / 1.034 * threads)
    assert rows["scaling/T=64/memory"]["ours"] == pytest.approx(1 + 2 * 64 / 1e3)
    assert (tmp_path / "log" / "bench_scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "wrote log/bench_scaling.png" in capsys.readouterr().out
