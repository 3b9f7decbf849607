"""Whole runs, as a user starts them: plain python and a real torchrun."""

import json

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, run_script, torchrun, write_corpus, write_hellaswag

from tracking.runlog import read_log


def test_a_run_leaves_a_falling_loss_and_every_file_it_promises(tmp_path):
    corpus, log_dir = write_corpus(tmp_path / "data"), tmp_path / "log"
    settings = TINY | {"max_steps": 40, "max_lr": 5e-3, "val_interval": 20, "sample_interval": 20, "sample_tokens": 8}
    done = run_script("train_gpt2.py", *as_flags(settings | {"data_dir": corpus, "log_dir": log_dir}))
    assert done.returncode == 0, done.stderr
    for words in (
        "found 2 shards for split train",
        "found 1 shards for split val",
        "using fused AdamW: True",
        "expected memory",
        "validation loss: ",
        "step   39 | loss ",
        "tok/s",
        "% mfu",
        "left",
        "[Sample 4]",
    ):
        assert words in done.stdout
    log = read_log(log_dir)
    assert set(log) == {"val", "train", "lr", "norm", "dt_ms", "tok_per_sec", "mfu"}
    assert log["train"].steps.tolist() == list(range(40))
    assert log["val"].steps.tolist() == [0, 20, 40]
    assert log["val"].values[-1] < log["val"].values[0] - 1.5
    state = torch.load(log_dir / "model_00040.pt", weights_only=True)
    expected = {"format_version", "model", "model_config", "tokenizer", "train_config", "step", "val_loss", "optimizer"}
    assert expected | {"loader", "rng", "scaler"} <= set(state)
    assert (state["step"], state["tokenizer"]) == (40, "byte")
    assert state["val_loss"] == pytest.approx(log["val"].values[-1], abs=1e-5)
    assert (log_dir / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((log_dir / "config.json").read_text())["config"]["max_lr"] == 5e-3
    again = run_script("sample.py", "--model", log_dir / "model_00040.pt", "--max_new_tokens", 5, "--num_samples", 2)
    assert "[Sample 2]" in again.stdout, again.stderr


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_ranks_train_as_one(tmp_path, optimizer):
    corpus = write_corpus(tmp_path / "data")
    settings = TINY | {"data_dir": corpus, "optimizer": optimizer, "dropout": 0.0, "val_tokens": 992}
    settings |= {"hellaswag_interval": 2, "hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl")}
    one = run_script("train_gpt2.py", *as_flags(settings | {"log_dir": tmp_path / "one"}))
    two = torchrun(2, "train_gpt2.py", *as_flags(settings | {"log_dir": tmp_path / "two"}))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert two.stdout.count("step    4 |") == 1, "only the master prints"
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    for stream in ("train", "norm", "val"):
        assert logs[0][stream].steps.tolist() == logs[1][stream].steps.tolist()
        np.testing.assert_allclose(logs[0][stream].values, logs[1][stream].values, atol=2e-4)
    assert logs[0]["hella"].values.tolist() == logs[1]["hella"].values.tolist()
    states = [torch.load(tmp_path / name / "model_00005.pt", weights_only=True) for name in ("one", "two")]
    tolerance = 1e-2 if optimizer == "muon" else 2e-5  # muon orthogonalizes in bfloat16, which magnifies rounding
    for name, weight in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][name], weight, rtol=1e-4, atol=tolerance, msg=name)


def test_a_mistake_under_torchrun_is_printed_once(tmp_path):
    corpus = write_corpus(tmp_path / "data")
    done = torchrun(2, "train_gpt2.py", *as_flags(TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "B": 3}))
    assert done.returncode != 0
    assert done.stderr.count("error: total_batch_size = 512 is not a multiple of B·T·ranks = 3·32·2 = 192") == 1
    assert not (tmp_path / "log").exists()


def test_the_debug_recipe_runs_as_it_stands(tmp_path):
    done = run_script("train_gpt2.py", "config/debug.py", "--log_dir", tmp_path / "log", "--max_steps", 3)
    assert done.returncode == 0, done.stderr
    assert "step    2 |" in done.stdout
