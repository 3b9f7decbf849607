"""Evaluation computes the right values and leaves training alone."""

import math

import numpy as np
import pytest
import torch
from helpers import write_hellaswag
from torch.nn import functional as F

from formats import checkpoint
from system.errors import UserError
from tokens.dataloader import Windows
from tokens.shards import Shards
from tracking.runlog import read_log
from train_gpt2 import train
from training import eval_loss

pytestmark = pytest.mark.usefixtures("empty_plots")


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_evaluation_changes_nothing_in_training(make_run, tmp_path, optimizer):
    settings = {"dropout": 0.1, "optimizer": optimizer}
    everything = {"val_interval": 1, "sample_interval": 2, "checkpoint_interval": 2, "sample_tokens": 8}
    everything |= {"hellaswag_interval": 1, "hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl")}
    losses = []
    for extras in ({}, everything):
        run = make_run(**settings, **extras)
        train(run)
        losses.append(read_log(run.cfg.log_dir)["train"].values.tolist())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    assert read_log(run.cfg.log_dir)["hella"].steps.tolist() == list(range(6))


def test_validation_is_the_textbook_mean_over_its_tokens(make_run):
    run = make_run(B=3, total_batch_size=96 * 3, val_tokens=700)
    validation = run.evaluations[0]
    loss = validation.measure(run)["val"]
    tokens = torch.from_numpy(validation.windows.shards[0].astype(np.int64))[: 700 // 32 * 32 + 1]
    tokens = tokens.to(run.rt.device)
    x, y = tokens[:-1].view(-1, 32), tokens[1:].view(-1, 32)
    expected = F.cross_entropy(run.model(x).double().flatten(0, 1), y.flatten())
    assert loss == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("B", [1, 3])
def test_validation_bits_per_byte_are_those_of_the_obvious_loop(make_run, B):
    run = make_run(B=B, total_batch_size=96 * B, val_tokens=700)
    validation = run.evaluations[0]
    tokens = np.array(validation.windows.shards[0])
    tokens[3:500:7] = 256  # end-of-text, which stands for no byte
    validation.windows = Windows(Shards.in_memory([tokens]), 32, "val")
    values = validation.measure(run)
    count = 700 // 32 * 32
    size = sum(len(bytes([token])) for token in tokens[1 : count + 1] if token != 256)
    assert count - size == len(range(3, 500, 7))
    assert values["val_bpb"] == values["val"] * count / size / math.log(2)


def test_validation_goes_on_without_a_vocabulary(make_run, monkeypatch, capsys):
    def fail(name):
        raise UserError("the GPT-2 vocabulary could not be loaded")

    monkeypatch.setattr(eval_loss, "get_tokenizer", fail)
    run = make_run(max_steps=1)
    train(run)
    assert "without bits per byte: the GPT-2 vocabulary could not be loaded" in capsys.readouterr().out
    log = read_log(run.cfg.log_dir)
    assert ("val" in log, "val_bpb" in log) == (True, False)


def test_compiled_training_does_not_recompile_after_an_evaluation(make_run, tmp_path):
    extras = {"sample_interval": 1, "sample_tokens": 4, "hellaswag_interval": 1, "val_interval": 1, "max_steps": 4}
    extras |= {"hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl")}
    run = make_run(compile=True, compile_backend="eager", **extras)
    torch._dynamo.reset()
    next_step, patches = run.loader.next_step, []

    def forbid_recompilation_from_step_1():
        if run.state.step == 1:
            patches.append(torch._dynamo.config.patch(error_on_recompile=True))
            patches[0].__enter__()
        return next_step()

    run.loader.next_step = forbid_recompilation_from_step_1
    try:
        train(run)
    finally:
        patches[0].__exit__(None, None, None)
    compiled = read_log(run.cfg.log_dir)["train"].values
    plain = make_run(max_steps=4)
    train(plain)
    np.testing.assert_allclose(compiled, read_log(plain.cfg.log_dir)["train"].values, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_evaluation_that_raises_changes_nothing_and_comes_after_the_save(make_run, tmp_path, capsys, number):
    settings = {"dropout": 0.1, "val_interval": 2, "sample_interval": 2, "hellaswag_interval": 2, "sample_tokens": 4}
    settings |= {"hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl"), "checkpoint_interval": 2}
    plain = make_run(**settings)
    train(plain)
    run = make_run(**settings)
    saved = []

    def fail(run):
        saved.append((run.state.step, max(checkpoint.list_checkpoints(tmp_path / "log"), default=None)))
        run.model.eval()
        raise ZeroDivisionError("of a test")

    run.evaluations[number].measure = fail
    train(run)
    name = run.evaluations[number].name
    assert f"warning: {name} failed (ZeroDivisionError: of a test); the run goes on" in capsys.readouterr().out
    for p, expected in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(p, expected)
    if number > 0:  # the validation decides which checkpoint is the best, so it comes before the save
        assert all(step in (0, newest) for step, newest in saved), saved


def test_evaluation_that_is_not_available_is_named_and_left_out(make_run, capsys):
    run = make_run(hellaswag_interval=1, hellaswag_data="absent.jsonl", max_steps=1)
    assert "without HellaSwag: absent.jsonl" in capsys.readouterr().out
    train(run)
    assert "hella" not in read_log(run.cfg.log_dir)
