"""The update equals its formulas, and a user's mistake ends with one line."""

import math

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, write_corpus
from torch.nn import functional as F

import train_gpt2
from system.errors import UserError
from tracking.runlog import read_log
from train_gpt2 import train
from training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("empty_plots")


def train_and_read(run):
    """(losses, norms, weights) of a whole run."""
    train(run)
    log = read_log(run.cfg.log_dir)
    return log["train"].values, log["norm"].values, weights(run.model)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def train_by_textbook(run, divide=True):
    """The same updates by the plainest loop: all rows at once, torch's cross-entropy, unfused AdamW."""
    cfg, model = run.cfg, run.model
    decay = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, foreach=False)
    losses, norms = [], []
    for step in range(cfg.max_steps):
        x, y = (torch.cat(parts) for parts in list(zip(*run.loader.next_step(), strict=True))[:2])
        logits, targets = model(run.rt.to_device(x)), run.rt.to_device(y)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        loss = loss * (1 if divide else run.loader.grad_accum_steps)
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.sqrt(sum(p.grad.square().sum() for p in model.parameters())).item())
        for p in model.parameters():
            p.grad *= min(1.0, cfg.grad_clip / (norms[-1] + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg)
        optimizer.step()
        losses.append(loss.item())
    return np.array(losses), np.array(norms), weights(model)


def assert_same_training(ours, expected):
    np.testing.assert_allclose(ours[0], expected[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], expected[1], atol=2e-4)
    for name, weight in expected[2].items():
        torch.testing.assert_close(ours[2][name], weight, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("B", [16, 4, 1])
def test_update_equals_the_textbook_for_every_accumulation(make_run, B):
    expected = train_by_textbook(make_run(B=16))
    assert_same_training(train_and_read(make_run(B=B)), expected)


def test_update_is_the_mean_over_all_targets_that_count(make_run, tmp_path):
    masked = {"data_dir": write_corpus(tmp_path / "masked", masked=True)}
    expected = train_by_textbook(make_run(B=16, **masked))
    assert_same_training(train_and_read(make_run(B=2, **masked)), expected)


def test_update_comparison_catches_a_missing_division(make_run):
    wrong = train_by_textbook(make_run(B=4), divide=False)
    with pytest.raises(AssertionError):
        assert_same_training(train_and_read(make_run(B=4)), wrong)


def test_overfit_batch_learns_one_batch_by_heart(make_run):
    settings = {"total_batch_size": 128, "max_steps": 200, "max_lr": 1e-2, "min_lr": 1e-3, "n_embd": 64}
    losses, _, _ = train_and_read(make_run(overfit_batch=True, **settings))
    assert losses[0] > 5
    assert losses[-1] < 0.05


def test_activation_checkpointing_trains_the_same(make_run):
    plain, recomputed = (train_and_read(make_run(activation_checkpointing=flag)) for flag in (False, True))
    assert plain[0].tolist() == recomputed[0].tolist()


def test_float16_scales_its_gradients(make_run):
    settings = {"total_batch_size": 128, "n_layer": 1, "max_steps": 3}  # a CPU emulates float16, slowly
    run = make_run(dtype="float16", **settings)
    losses, norms, _ = train_and_read(run)
    assert run.scaler.is_enabled()
    np.testing.assert_allclose(losses, train_and_read(make_run(**settings))[0], atol=0.02)
    assert (norms < 100).all(), "norms are of the unscaled gradient"


def at_step(run, step, action):
    """Call `action` just before the run takes the batches of `step`."""
    next_step = run.loader.next_step

    def next_step_after_action():
        if run.state.step == step:
            action()
        return next_step()

    run.loader.next_step = next_step_after_action


def test_update_with_a_gradient_that_is_not_finite_is_never_applied(make_run, capsys):
    run = make_run(max_steps=20, max_bad_steps=3)
    before = {}

    def break_the_model():
        with torch.no_grad():
            run.model.transformer.h[0].mlp.c_fc.bias[3] = math.nan
        before.update(weights(run.model))

    at_step(run, 2, break_the_model)
    with pytest.raises(UserError, match=r"stopped at step 4: .* for 3 steps"):
        train(run)
    assert capsys.readouterr().out.count("update skipped") == 3
    for name, p in run.model.named_parameters():
        assert torch.equal(p.nan_to_num(), before[name].nan_to_num()), name


def test_update_with_one_bad_step_is_skipped_and_the_run_continues(make_run, monkeypatch):
    run = make_run(max_steps=6)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def clip_with_one_nan(parameters, max_norm):
        calls.append(1)
        return clip(parameters, max_norm) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_with_one_nan)
    train(run)
    norms = read_log(run.cfg.log_dir)["norm"].values
    assert np.isnan(norms).tolist() == [False, False, True, False, False, False]
    assert run.state.bad_steps == 0


def refused(capsys, *argv, **settings):
    """The one line with which train_gpt2.py refuses these settings."""
    with pytest.raises(SystemExit) as stop:
        train_gpt2.main([*argv, *as_flags(TINY | settings)])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    return lines[-1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"total_batch_size": 500}, ["500", "multiple", "4·32·1 = 128", "512"]),
        ({"T": 64, "total_batch_size": 256}, ["T = 64", "block_size = 32"]),
        ({"n_embd": 33}, ["n_embd = 33", "n_head = 2"]),
        ({"tokenizer": "gpt2"}, ["tokenizer = gpt2", "byte"]),
        ({"init_from": "absent.pt"}, ["absent.pt", "no such model"]),
        ({"B": 0}, ["B = 0", "at least 1"]),
        ({"dropout": 1.5}, ["dropout = 1.5"]),
        ({"data_dir": "/absent"}, ["/absent", "python prepare.py"]),
        ({"data_dir": "absent/edu_fineweb10B"}, ["absent/edu_fineweb10B", "python fineweb.py"]),
        ({"max_lr": "high"}, ["--max_lr", "a number"]),
    ],
)
def test_settings_that_do_not_fit_end_with_one_line_and_exit_code_2(corpus, tmp_path, capsys, settings, words):
    line = refused(capsys, **{"data_dir": corpus, "log_dir": tmp_path / "log"} | settings)
    assert all(word in line for word in words), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_device_that_does_not_exist_is_named(corpus, tmp_path, capsys):
    line = refused(capsys, data_dir=corpus, log_dir=tmp_path / "log", device="cuda")
    assert "--device cuda" in line
    assert "cpu" in line


def test_token_ids_above_the_vocabulary_are_refused(tmp_path, capsys):
    folder = write_corpus(tmp_path / "data")
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta.replace('"max_id": 256', '"max_id": 300', 1))
    assert "token id 300" in refused(capsys, data_dir=folder, log_dir=tmp_path / "log")


def test_shard_that_is_damaged_is_named(tmp_path, capsys):
    folder = write_corpus(tmp_path / "data")
    shard = folder / "tiny_train_000001.npy"
    whole = shard.read_bytes()
    damages = {"truncated": whole[:-2], "not a NumPy file": b"x" + whole[1:], "too long": whole + b"xx"}
    for words, content in damages.items():
        shard.write_bytes(content)
        line = refused(capsys, data_dir=folder, log_dir=tmp_path / "log")
        assert "tiny_train_000001.npy" in line
        assert words in line
    shard.unlink()
    assert "tiny_train_000001.npy" in refused(capsys, data_dir=folder, log_dir=tmp_path / "log")


def test_conversations_need_the_sequence_length_of_their_windows(tmp_path, capsys):
    settings = {"data_dir": write_corpus(tmp_path / "data", masked=True), "log_dir": tmp_path / "log", "T": 16}
    assert "holds conversations in windows of 32 tokens: set it so" in refused(capsys, **settings)


def test_log_dir_with_a_run_is_never_overwritten_unasked(corpus, tmp_path, capsys):
    settings = {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1}
    train_gpt2.main(as_flags(TINY | settings))
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    assert "--resume, --overwrite" in refused(capsys, **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    train_gpt2.main([*as_flags(TINY | settings), "--overwrite"])


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GiB, max allowed: 9.07 GiB)"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "mps"])
def test_out_of_memory_names_the_settings_to_lower(error, corpus, tmp_path, capsys, monkeypatch):
    def run_out(run):
        raise error

    monkeypatch.setattr(train_gpt2, "train", run_out)
    line = refused(capsys, data_dir=corpus, log_dir=tmp_path / "log")
    assert all(word in line for word in ("out of memory", "lower B (now 4", "--activation_checkpointing"))
