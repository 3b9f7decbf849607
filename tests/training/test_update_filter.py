"""Outlier steps are found by the textbook's z-score, skipped, counted and logged."""

from collections import deque

import numpy as np
import torch

from tracking.runlog import read_log
from train_gpt2 import train
from training.state import WINDOW
from training.update_filter import zscore


def test_zscore_is_the_textbook_formula():
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 0.1, 400)
    values[[50, 200, 300]] = 9.0
    values[310] = -9.0
    window, found = deque(maxlen=WINDOW), []
    for value in values:
        found.append(zscore(value, window))
        window.append(value)
    expected = [
        (values[i] - values[i - WINDOW : i].mean()) / values[i - WINDOW : i].std() if i >= WINDOW else 0.0
        for i in range(400)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_outlier_update_is_skipped_counted_and_logged(make_run, tmp_path, capsys):
    run = make_run(skip_norm_zscore=3.0, max_steps=1)
    run.state.recent_norms.extend([0.1, 0.2] * (WINDOW // 2))  # norms far below this run's
    before = run.model.transformer.wte.weight.clone()
    train(run)
    assert torch.equal(run.model.transformer.wte.weight, before)
    assert "update skipped" in capsys.readouterr().out
    assert read_log(tmp_path / "log")["skipped"].values.tolist() == [1]


def test_outlier_below_the_mean_is_applied(make_run):
    run = make_run(skip_norm_zscore=3.0, max_steps=1)
    run.state.recent_norms.extend([1000.0, 1001.0] * (WINDOW // 2))
    train(run)
    assert run.state.skipped == 0
