"""Whole training runs, started as a user starts them."""

import json
import re

import pytest
import torch
from helpers import MEASURED, ROOT, TINY, as_flags, run_script, torchrun, write_corpus

import sample
import train_gpt2
from tracking.runlog import read_log


def test_training_lowers_the_loss_and_writes_every_file(tmp_path, capsys):
    corpus, log_dir = write_corpus(tmp_path / "data"), tmp_path / "log"
    settings = TINY | {"max_steps": 40, "max_lr": 5e-3, "val_interval": 20, "sample_interval": 20, "sample_tokens": 8}
    done = run_script("train_gpt2.py", *as_flags(settings | {"data_dir": corpus, "log_dir": log_dir}))
    assert done.returncode == 0, done.stderr
    for words in (
        "found 2 shards for split train",
        "found 1 shard for split val",
        "using fused AdamW: True",
        "expected memory",
        "peak memory so far",
        "validation loss: ",
        "step   39 | loss ",
        "tok/s",
        "% mfu",
        "left",
        "[Sample 4]",
    ):
        assert words in done.stdout
    log = read_log(log_dir)
    assert set(log) == {"val", "val_bpb", "train", "lr", "norm", *MEASURED}
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
    sample.main(
        ["--model", str(log_dir / "model_00040.pt"), "--max_new_tokens=5", "--num_samples=2", "--prompt=3 plus"]
    )
    assert "[Sample 2] 3 plus" in capsys.readouterr().out


def test_torchrun_prints_a_user_error_once(tmp_path):
    """A mistake that only the master looks for: the other ranks neither report it nor a lost rank."""
    settings = TINY | {"data_dir": tmp_path / "absent", "log_dir": tmp_path / "log"}
    done = torchrun(2, "train_gpt2.py", *as_flags(settings))
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1, done.stderr
    assert f"error: {tmp_path / 'absent'} does not exist; it should hold a shard" in done.stderr
    assert "lost another rank" not in done.stderr
    assert re.search(r"exitcode *: 2 ", done.stderr), "torchrun reports the code of the rank, and exits with 1 itself"
    assert not (tmp_path / "log").exists()


def test_debug_recipe_runs(tmp_path, capsys):
    train_gpt2.main([str(ROOT / "config/debug.py"), f"--log_dir={tmp_path / 'log'}", "--max_steps=3"])
    assert "step    2 |" in capsys.readouterr().out
