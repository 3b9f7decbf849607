"""One update is what the formulas say, evaluation leaves training alone, and bad input is refused in one line."""

import math

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, write_corpus, write_hellaswag
from torch.nn import functional as F

import train_gpt2
from system.errors import UserError
from tracking.runlog import read_log
from train_gpt2 import learning_rate
from training.config import TrainConfig


def run_steps(trainer, steps=5):
    """(losses, norms, weights) of the first steps."""
    trainer.run_start = trainer.clock = 0.0
    for trainer.step in range(steps):
        trainer.update()
    log = read_log(trainer.cfg.log_dir)
    return (
        log["train"].values,
        log["norm"].values,
        weights(trainer.raw_model),
    )


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def textbook_steps(trainer, steps=5, divide=True):
    """The same updates by the plainest loop: all rows at once, torch's cross-entropy, unfused AdamW."""
    cfg, model = trainer.cfg, trainer.raw_model
    decay = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decay, "weight_decay": cfg.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        x, y = (torch.cat(parts) for parts in zip(*trainer.loader.next_step(), strict=True))
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) * (1 if divide else trainer.loader.grad_accum_steps)
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
def test_an_update_is_the_textbooks_however_it_is_accumulated(make_trainer, B):
    expected = textbook_steps(make_trainer(B=16))
    assert_same_training(run_steps(make_trainer(B=B)), expected)


def test_the_comparison_would_catch_a_missing_division(make_trainer):
    wrong = textbook_steps(make_trainer(B=4), divide=False)
    with pytest.raises(AssertionError):
        assert_same_training(run_steps(make_trainer(B=4)), wrong)


def test_the_learning_rate_at_its_corners():
    cfg = TrainConfig(max_lr=6e-4, min_lr=6e-5, warmup_steps=715, max_steps=19073)
    assert learning_rate(0, cfg) == pytest.approx(6e-4 / 715)
    assert learning_rate(714, cfg) == pytest.approx(6e-4)
    assert learning_rate(715, cfg) == pytest.approx(6e-4)
    assert learning_rate((715 + 19073) // 2, cfg) == pytest.approx((6e-4 + 6e-5) / 2)
    assert learning_rate(19072, cfg) == pytest.approx(6e-5, rel=1e-4)
    assert learning_rate(19073, cfg) == learning_rate(10**6, cfg) == 6e-5
    assert learning_rate(0, TrainConfig(warmup_steps=0)) == pytest.approx(6e-4)


def test_one_batch_can_be_learned_by_heart(make_trainer):
    trainer = make_trainer(overfit_batch=True, total_batch_size=128, max_steps=300, max_lr=1e-2, min_lr=1e-3, n_embd=64)
    losses, _, _ = run_steps(trainer, 300)
    assert losses[0] > 5
    assert losses[-1] < 0.05


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_evaluation_changes_nothing_in_training(make_trainer, tmp_path, optimizer):
    settings = {"dropout": 0.1, "optimizer": optimizer}
    all_of_it = {"val_interval": 1, "sample_interval": 2, "checkpoint_interval": 2, "sample_tokens": 8}
    all_of_it |= {"hellaswag_interval": 1, "hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl")}
    losses = []
    for extras in ({}, all_of_it):
        trainer = make_trainer(**settings, **extras)
        trainer.run()
        losses.append(read_log(trainer.cfg.log_dir)["train"].values.tolist())
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5
    assert read_log(trainer.cfg.log_dir)["hella"].steps.tolist() == list(range(6))


def test_validation_is_the_textbooks_mean_over_its_tokens(make_trainer):
    trainer = make_trainer(B=3, total_batch_size=96 * 3, val_tokens=700)
    trainer.run_start = trainer.clock = 0.0
    trainer.validate()
    tokens = torch.from_numpy(trainer.val_windows.shards[0].astype(np.int64))[: 700 // 32 * 32 + 1]
    x, y = tokens[:-1].view(-1, 32), tokens[1:].view(-1, 32)
    expected = F.cross_entropy(trainer.raw_model(x).double().flatten(0, 1), y.flatten())
    assert trainer.val_loss == pytest.approx(expected.item(), abs=1e-6)


def test_nothing_recompiles_after_the_first_evaluation(make_trainer, tmp_path):
    extras = {"sample_interval": 1, "sample_tokens": 4, "hellaswag_interval": 1}
    extras |= {"hellaswag_data": write_hellaswag(tmp_path / "hellaswag.jsonl")}
    trainer = make_trainer(compile=True, compile_backend="eager", **extras)
    torch._dynamo.reset()
    run_steps(trainer, 1)
    trainer.validate()
    trainer.score_hellaswag()
    trainer.sample()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for trainer.step in range(1, 4):
            trainer.update()
            trainer.validate()
            trainer.score_hellaswag()
            trainer.sample()
    compiled = read_log(trainer.cfg.log_dir)["train"].values
    np.testing.assert_allclose(compiled, run_steps(make_trainer(), 4)[0], atol=1e-5)


def test_activation_checkpointing_trains_the_same(make_trainer):
    plain, recomputed = (run_steps(make_trainer(activation_checkpointing=flag)) for flag in (False, True))
    assert plain[0].tolist() == recomputed[0].tolist()


def test_float16_scales_its_gradients(make_trainer):
    settings = {"total_batch_size": 128, "n_layer": 1}  # a CPU emulates float16, slowly
    trainer = make_trainer(dtype="float16", **settings)
    losses, norms, _ = run_steps(trainer, 3)
    assert trainer.scaler.is_enabled()
    np.testing.assert_allclose(losses, run_steps(make_trainer(**settings), 3)[0], atol=0.02)
    assert (norms < 100).all(), "norms are of the unscaled gradient"


def test_a_gradient_that_is_not_finite_is_never_applied(make_trainer, capsys):
    trainer = make_trainer(max_steps=20, max_bad_steps=3)
    run_steps(trainer, 2)
    with torch.no_grad():
        trainer.raw_model.transformer.h[0].mlp.c_fc.bias[3] = math.nan
    before = weights(trainer.raw_model)
    for trainer.step in (2, 3):
        trainer.update()
    trainer.step = 4
    with pytest.raises(UserError, match=r"stopped at step 4: .* for 3 steps"):
        trainer.update()
    assert capsys.readouterr().out.count("update skipped") == 3
    for name, p in trainer.raw_model.named_parameters():
        assert torch.equal(p.nan_to_num(), before[name].nan_to_num()), name


def test_one_bad_step_is_skipped_and_the_run_goes_on(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=6)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def clip_with_one_nan(parameters, max_norm):
        calls.append(1)
        return clip(parameters, max_norm) * (math.nan if len(calls) == 3 else 1.0)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_with_one_nan)
    trainer.run()
    norms = read_log(trainer.cfg.log_dir)["norm"].values
    assert np.isnan(norms).tolist() == [False, False, True, False, False, False]
    assert trainer.bad_steps == 0


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
def test_a_mistake_is_one_line_and_exit_code_2(corpus, tmp_path, capsys, settings, words):
    line = refused(capsys, **{"data_dir": corpus, "log_dir": tmp_path / "log"} | settings)
    assert all(word in line for word in words), line


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_named(corpus, tmp_path, capsys):
    line = refused(capsys, data_dir=corpus, log_dir=tmp_path / "log", device="cuda")
    assert "--device cuda" in line
    assert "cpu" in line


def test_token_ids_beyond_the_vocabulary_are_found_before_training(tmp_path, capsys):
    folder = write_corpus(tmp_path / "data")
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta.replace('"max_id": 256', '"max_id": 300', 1))
    assert "token id 300" in refused(capsys, data_dir=folder, log_dir=tmp_path / "log")


def test_a_damaged_shard_is_named(tmp_path, capsys):
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


def test_a_run_is_never_overwritten_unasked(corpus, tmp_path, capsys):
    settings = {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1}
    train_gpt2.main(as_flags(TINY | settings))
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    assert "--resume, --overwrite" in refused(capsys, **settings)
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    train_gpt2.main([*as_flags(TINY | settings), "--overwrite"])


def test_out_of_memory_says_what_to_lower(corpus, tmp_path, capsys, monkeypatch):
    def run_out(self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(train_gpt2.Trainer, "update", run_out)
    line = refused(capsys, data_dir=corpus, log_dir=tmp_path / "log")
    assert all(word in line for word in ("out of memory", "lower B (now 4", "--activation_checkpointing"))
