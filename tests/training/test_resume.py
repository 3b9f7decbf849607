"""A resumed run is the run that was never stopped; what may not change is refused; no checkpoint is lost."""

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, write_corpus

import train_gpt2
from formats import checkpoint
from system.errors import UserError
from system.signals import StopRequest
from tracking.runlog import read_log
from training.outliers import WINDOW, OutlierDetector


def final_state(log_dir):
    return checkpoint.load(max(checkpoint.list_checkpoints(log_dir).items())[1])


def assert_bit_identical(a, b):
    assert a["model"].keys() == b["model"].keys()
    for name, weight in a["model"].items():
        assert torch.equal(weight, b["model"][name]), name
    for ours, others in zip(a["optimizer"], b["optimizer"], strict=True):
        for key, values in ours["state"].items():
            for name, value in values.items():
                assert torch.equal(value, others["state"][key][name]), (key, name)
    for name in ("step", "loader", "val_loss", "best", "skipped", "outliers"):
        assert a[name] == b[name], name


def log_without_times(log_dir):
    lines = (log_dir / "log.txt").read_text().splitlines()
    return [line for line in lines if line.split()[1] not in ("dt_ms", "tok_per_sec", "mfu")]


BUSY = {"max_steps": 8, "val_interval": 3, "checkpoint_interval": 3, "keep_last": 0, "dropout": 0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("at", [3, 6])
def test_a_resumed_run_is_bit_identical(make_trainer, tmp_path, optimizer, at):
    settings = BUSY | {"optimizer": optimizer}
    make_trainer(**settings).run()
    undisturbed, log = final_state(tmp_path / "log"), log_without_times(tmp_path / "log")
    for step in (at + 3, 8):  # as if the run had been killed after the checkpoint at `at`
        (tmp_path / "log" / f"model_{step:05d}.pt").unlink(missing_ok=True)
    trainer = make_trainer(**settings, resume=True)
    assert trainer.step == at
    trainer.run()
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)
    assert log_without_times(tmp_path / "log") == log


def test_the_comparison_would_notice_forgotten_state(make_trainer, tmp_path):
    make_trainer(**BUSY).run()
    undisturbed = final_state(tmp_path / "log")
    (tmp_path / "log" / "model_00008.pt").unlink()
    trainer = make_trainer(**BUSY, resume=True)
    trainer.loader.position -= 1
    trainer.run()
    with pytest.raises(AssertionError):
        assert_bit_identical(final_state(tmp_path / "log"), undisturbed)


def test_a_stop_on_request_loses_nothing(make_trainer, tmp_path):
    make_trainer(**BUSY).run()
    undisturbed, log = final_state(tmp_path / "log"), log_without_times(tmp_path / "log")
    trainer = make_trainer(**BUSY)
    update = trainer.update

    def update_and_be_asked_to_stop():
        trainer.stop.requested = trainer.step == 4
        update()

    trainer.update = update_and_be_asked_to_stop
    trainer.run()
    assert max(checkpoint.list_checkpoints(tmp_path / "log")) == 5
    make_trainer(**BUSY, resume=True).run()
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)
    assert log_without_times(tmp_path / "log") == log


def test_a_stop_during_validation_is_heard(make_trainer, tmp_path):
    trainer = make_trainer(**BUSY)
    trainer.step = 0
    trainer.stop.requested = True
    trainer.run()
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [0]
    assert "val" not in read_log(tmp_path / "log")


def test_another_B_goes_on_with_the_same_tokens(make_trainer, tmp_path):
    settings = BUSY | {"dropout": 0.0}
    make_trainer(**settings).run()
    expected = read_log(tmp_path / "log")["train"].values
    for step in (6, 8):
        (tmp_path / "log" / f"model_{step:05d}.pt").unlink()
    make_trainer(**settings | {"B": 2}, resume=True).run()
    np.testing.assert_allclose(read_log(tmp_path / "log")["train"].values, expected, atol=1e-5)


def test_what_may_change_does(make_trainer, tmp_path):
    make_trainer(**BUSY).run()
    changed = {"max_steps": 10, "max_lr": 5e-4, "val_interval": 5, "B": 8, "checkpoint_interval": 5}
    trainer = make_trainer(**BUSY | changed, resume=True)
    trainer.run()
    log = read_log(tmp_path / "log")
    assert log["train"].steps.tolist() == list(range(10))
    assert log["lr"].values[9] == pytest.approx(train_gpt2.learning_rate(9, trainer.cfg), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_layer": 3}, ["n_layer = 3", "made with 2"]),
        ({"n_embd": 64}, ["n_embd = 64", "made with 32"]),
        ({"block_size": 64}, ["block_size = 64", "made with 32"]),
        ({"T": 16}, ["T = 16", "made with 32"]),
        ({"seed": 5}, ["seed = 5", "made with 1337"]),
        ({"optimizer": "muon"}, ["optimizer = muon", "made with adamw"]),
    ],
)
def test_what_may_not_change_is_refused_with_both_values(make_trainer, settings, words):
    make_trainer(max_steps=1).run()
    with pytest.raises(UserError) as error:
        make_trainer(max_steps=2, resume=True, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_data_of_another_length_is_refused(make_trainer, tmp_path):
    make_trainer(max_steps=1).run()
    write_corpus(tmp_path / "data", val=5000)
    with pytest.raises(UserError, match=r"training windows = \d+, but .* was made with \d+"):
        make_trainer(max_steps=2, resume=True)


def test_resume_with_nothing_there_starts_anew_and_says_so(make_trainer, capsys):
    assert make_trainer(resume=True).step == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_a_group_that_torchrun_restarted_resumes_whatever_the_flags(make_trainer, monkeypatch):
    make_trainer(max_steps=2).run()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert make_trainer(max_steps=4).step == 2  # although the command said --overwrite


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(make_trainer, tmp_path, capsys):
    make_trainer(**BUSY).run()
    undisturbed = final_state(tmp_path / "log")
    newest = tmp_path / "log" / "model_00008.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 4
    newest.write_bytes(content)
    trainer = make_trainer(**BUSY, resume=True)
    assert trainer.step == 6
    assert "model_00008.pt is damaged" in capsys.readouterr().out
    trainer.run()
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)


def test_if_every_checkpoint_is_damaged_nothing_is_started(make_trainer, tmp_path):
    make_trainer(**BUSY).run()
    for path in checkpoint.list_checkpoints(tmp_path / "log").values():
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        make_trainer(**BUSY, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before


def test_the_newest_and_the_best_are_kept(make_trainer, tmp_path, monkeypatch):
    losses = iter([9.0, 3.0, 5.0, 4.0, 6.0, 7.0])
    trainer = make_trainer(max_steps=5, checkpoint_interval=1, keep_last=2, val_interval=1)

    def validate():
        trainer.val_loss, trainer.val_step = next(losses), trainer.step

    trainer.validate = validate
    trainer.run()
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [1, 4, 5]
    assert final_state(tmp_path / "log")["best"] == (3.0, 1)


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_a_checkpoint_that_cant_be_written_harms_no_other(make_trainer, tmp_path, monkeypatch, capsys, policy):
    save = checkpoint.save

    def fail_at_4(path, state):
        if state["step"] == 4:
            raise OSError(28, "No space left on device")
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", fail_at_4)
    trainer = make_trainer(max_steps=6, checkpoint_interval=2, on_checkpoint_error=policy)
    if policy == "stop":
        with pytest.raises(UserError, match="stopped at step 4"):
            trainer.run()
    else:
        trainer.run()
    assert "model_00004.pt could not be written (No space left on device)" in capsys.readouterr().out
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == ([2] if policy == "stop" else [2, 6])


def test_outliers_are_those_of_the_textbooks_zscore():
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 0.1, 400)
    values[[50, 200, 300]] = 9.0
    values[310] = -9.0
    detector = OutlierDetector(4.0)
    found = [i for i, value in enumerate(values) if detector.is_outlier(value)]
    expected = [
        i
        for i in range(WINDOW, 400)
        if (values[i] - values[i - WINDOW : i].mean()) / values[i - WINDOW : i].std() > 4.0
    ]
    assert found == expected
    assert {200, 300} <= set(found)
    assert not {50, 310} & set(found), "the window fills first, and a loss that is too good is no harm"


def test_an_outlier_is_skipped_counted_and_logged(make_trainer, tmp_path, capsys):
    trainer = make_trainer(skip_norm_zscore=3.0)
    trainer.outliers[1].load_state_dict({"values": [0.1, 0.2] * (WINDOW // 2)})  # norms that this run never has
    before = trainer.raw_model.transformer.wte.weight.clone()
    trainer.run_start = trainer.clock = 0.0
    trainer.update()
    assert torch.equal(trainer.raw_model.transformer.wte.weight, before)
    assert "update skipped" in capsys.readouterr().out
    assert read_log(tmp_path / "log")["skipped"].values.tolist() == [1]


def test_checkpoints_hold_only_what_weights_only_reads(make_trainer, tmp_path):
    make_trainer(dropout=0.1, skip_loss_zscore=6.0).run()

    def check(value):
        assert type(value) in (torch.Tensor, int, float, str, bool, type(None), dict, list, tuple), type(value)
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple)):
            for item in value:
                check(item)

    check({k: v for k, v in final_state(tmp_path / "log").items() if k != "model"})


def test_a_stop_request_puts_old_handlers_back():
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(lambda text: None) as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_unfinished_run_without_resume_is_refused(corpus, tmp_path, capsys):
    settings = as_flags(TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1})
    train_gpt2.main(settings)
    (tmp_path / "log" / "model_00001.pt").unlink()  # only the log is left
    with pytest.raises(SystemExit):
        train_gpt2.main(settings)
    assert "already holds a run" in capsys.readouterr().err
