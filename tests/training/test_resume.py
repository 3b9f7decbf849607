"""A resumed run equals the run that was never stopped; settings that may not change are refused."""

import json

import numpy as np
import pytest
import torch
from helpers import MEASURED, TEXT, TINY, as_flags, write_corpus

import train_gpt2
from configurator import configure
from formats import checkpoint
from formats.read import read
from system.errors import NothingToDo, UserError
from tracking import runlog
from tracking.runlog import read_log
from train_gpt2 import train
from training import evaluation, saving
from training.config import TrainConfig, recorded_settings
from training.saving import CONTENT
from training.schedule import learning_rate

pytestmark = pytest.mark.usefixtures("empty_plots")


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
    return [line for line in lines if line.split()[1] not in MEASURED]


BUSY = {"max_steps": 8, "val_interval": 3, "checkpoint_interval": 3, "keep_last": 0, "dropout": 0.1}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("at", [3, 6])
def test_resume_is_bit_identical(make_run, tmp_path, optimizer, at):
    settings = BUSY | {"optimizer": optimizer}
    train(make_run(**settings))
    undisturbed, log = final_state(tmp_path / "log"), log_without_times(tmp_path / "log")
    for step in (at + 3, 8):  # as if the run had been killed after the checkpoint at `at`
        (tmp_path / "log" / f"model_{step:05d}.pt").unlink(missing_ok=True)
    run = make_run(**settings, resume=True)
    assert run.state.step == at
    train(run)
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)
    assert log_without_times(tmp_path / "log") == log


def test_resume_comparison_notices_forgotten_state(make_run, tmp_path):
    train(make_run(**BUSY))
    undisturbed = final_state(tmp_path / "log")
    (tmp_path / "log" / "model_00008.pt").unlink()
    run = make_run(**BUSY, resume=True)
    run.loader.position -= 1
    train(run)
    with pytest.raises(AssertionError):
        assert_bit_identical(final_state(tmp_path / "log"), undisturbed)


def test_stop_request_loses_nothing(make_run, tmp_path):
    train(make_run(**BUSY))
    undisturbed, log = final_state(tmp_path / "log"), log_without_times(tmp_path / "log")
    run = make_run(**BUSY)
    next_step = run.loader.next_step

    def next_step_and_request_to_stop():
        run.stop_request.requested = run.state.step == 4
        return next_step()

    run.loader.next_step = next_step_and_request_to_stop
    train(run)
    assert max(checkpoint.list_checkpoints(tmp_path / "log")) == 5
    train(make_run(**BUSY, resume=True))
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)
    assert log_without_times(tmp_path / "log") == log


def test_stop_request_during_the_first_validation_leaves_no_checkpoint(make_run, tmp_path, capsys):
    run = make_run(**BUSY)
    run.stop_request.requested = True
    train(run)
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [], "there is nothing to save before the first step"
    assert "val" not in read_log(tmp_path / "log")
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert last_line == f"stopped on request after 0 steps, continue with --resume: {tmp_path / 'log'} holds the log"


def test_stop_request_at_the_start_of_a_resumed_run_keeps_its_checkpoint(make_run, tmp_path):
    train(make_run(**BUSY | {"max_steps": 3}))
    before = {path: path.stat().st_mtime_ns for path in checkpoint.list_checkpoints(tmp_path / "log").values()}
    run = make_run(**BUSY, resume=True)
    run.stop_request.requested = True
    train(run)
    assert {path: path.stat().st_mtime_ns for path in checkpoint.list_checkpoints(tmp_path / "log").values()} == before


def test_resume_of_a_finished_run_says_so_and_changes_nothing(make_run, tmp_path):
    train(make_run(**BUSY))
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    with pytest.raises(NothingToDo, match=r"finished: .* holds all 8 steps .* --max_steps 16"):
        make_run(**BUSY, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before
    assert make_run(**BUSY | {"max_steps": 16}, resume=True).state.step == 8


def test_resume_repeats_a_last_validation_that_was_interrupted(make_run, tmp_path):
    run = make_run(**BUSY)
    next_step = run.loader.next_step

    def next_step_and_request_to_stop():
        run.stop_request.requested = run.state.step == 7
        return next_step()

    run.loader.next_step = next_step_and_request_to_stop
    train(run)
    assert max(checkpoint.list_checkpoints(tmp_path / "log")) == 8
    assert 8 not in read_log(tmp_path / "log")["val"].steps
    train(make_run(**BUSY, resume=True))
    assert 8 in read_log(tmp_path / "log")["val"].steps
    with pytest.raises(NothingToDo):
        make_run(**BUSY, resume=True)


def test_resume_alone_takes_the_settings_of_the_run(make_run, tmp_path):
    train(make_run(max_steps=2, max_lr=5e-3))
    flags = [f"--log_dir={tmp_path / 'log'}", "--resume"]
    cfg = configure(TrainConfig, [*flags, "--max_steps=4"], recall=recorded_settings)
    assert (cfg.max_steps, cfg.max_lr, cfg.n_layer, cfg.data_dir) == (4, 5e-3, 2, str(tmp_path / "data"))
    assert (cfg.resume, cfg.overwrite) == (True, False)
    assert configure(TrainConfig, flags[:1], recall=recorded_settings).n_layer == 12, "not without --resume"
    record = json.loads((tmp_path / "log" / "config.json").read_text())
    record["config"]["of_another_version"] = 1
    (tmp_path / "log" / "config.json").write_text(json.dumps(record))
    assert configure(TrainConfig, flags, recall=recorded_settings).max_lr == 5e-3


def test_resume_with_another_B_trains_on_the_same_tokens(make_run, tmp_path):
    settings = BUSY | {"dropout": 0.0}
    train(make_run(**settings))
    expected = read_log(tmp_path / "log")["train"].values
    for step in (6, 8):
        (tmp_path / "log" / f"model_{step:05d}.pt").unlink()
    train(make_run(**settings | {"B": 2}, resume=True))
    np.testing.assert_allclose(read_log(tmp_path / "log")["train"].values, expected, atol=1e-5)


def test_resume_applies_settings_that_may_change(make_run, tmp_path):
    train(make_run(**BUSY))
    changed = {"max_steps": 10, "max_lr": 5e-4, "val_interval": 5, "B": 8, "checkpoint_interval": 5}
    run = make_run(**BUSY | changed, weight_decay=0.3, beta2=0.8, resume=True)
    decayed, others = run.optimizers.optimizers[0].param_groups
    assert (decayed["weight_decay"], others["weight_decay"], decayed["betas"]) == (0.3, 0.0, (0.9, 0.8))
    train(run)
    log = read_log(tmp_path / "log")
    assert log["train"].steps.tolist() == list(range(10))
    assert log["lr"].values[9] == pytest.approx(learning_rate(9, run.cfg), rel=1e-5)


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
def test_resume_refuses_settings_that_may_not_change(make_run, settings, words):
    train(make_run(max_steps=1))
    with pytest.raises(UserError) as error:
        make_run(max_steps=2, resume=True, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_resume_refuses_data_of_another_length(make_run, tmp_path):
    train(make_run(max_steps=1))
    write_corpus(tmp_path / "data", val=5000)
    with pytest.raises(UserError, match=r"training windows = \d+, but .* was made with \d+"):
        make_run(max_steps=2, resume=True)


def test_resume_refuses_other_data_of_the_same_length(make_run, tmp_path):
    train(make_run(max_steps=1))
    write_corpus(tmp_path / "data", text=TEXT.replace("1", "2"))
    with pytest.raises(UserError, match=r"holds other tokens than those that .*model_00001\.pt was trained on"):
        make_run(max_steps=2, resume=True)


def test_resume_without_a_checkpoint_starts_a_new_run(make_run, capsys):
    assert make_run(resume=True).state.step == 0
    assert "nothing to resume" in capsys.readouterr().out


def test_resume_is_automatic_after_a_torchrun_restart(make_run, monkeypatch):
    train(make_run(max_steps=2))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert make_run(max_steps=4).state.step == 2  # although the command said --overwrite


def test_resume_names_a_damaged_checkpoint_and_uses_the_previous_one(make_run, tmp_path, capsys):
    train(make_run(**BUSY))
    undisturbed = final_state(tmp_path / "log")
    newest = tmp_path / "log" / "model_00008.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 4
    newest.write_bytes(content)
    run = make_run(**BUSY, resume=True)
    assert run.state.step == 6
    assert "model_00008.pt is damaged" in capsys.readouterr().out
    train(run)
    assert_bit_identical(final_state(tmp_path / "log"), undisturbed)


def test_resume_refuses_to_start_if_every_checkpoint_is_damaged(make_run, tmp_path):
    train(make_run(**BUSY))
    for path in checkpoint.list_checkpoints(tmp_path / "log").values():
        path.write_bytes(path.read_bytes()[:-100])
    before = {path: path.read_bytes() for path in (tmp_path / "log").iterdir()}
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        make_run(**BUSY, resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "log").iterdir()} == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(data, the content of the last checkpoint) of a run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_corpus(folder / "data")
    train_gpt2.main(as_flags(TINY | {"max_steps": 1, "data_dir": data, "log_dir": folder / "log"}))
    return data, final_state(folder / "log")


@pytest.mark.parametrize(
    ("name", "wrong"), [("n_layer", 10**9), *((name, "x") for name in CONTENT), ("outliers", None)]
)
def test_resume_refuses_a_checkpoint_without_its_parts_under_a_valid_checksum(finished, tmp_path, capsys, name, wrong):
    data, content = finished
    if wrong is None:
        content = {key: value for key, value in content.items() if key != name}
    elif name == "n_layer":
        content = content | {"model_config": content["model_config"] | {name: wrong}}
    elif name == "tokenizer":
        content = content | {name: 3}
    else:
        content = content | {name: wrong}
    checkpoint.save(tmp_path / "model_00001.pt", content)
    with pytest.raises(SystemExit) as caught:
        train_gpt2.main(as_flags(TINY | {"resume": True, "data_dir": data, "log_dir": tmp_path}))
    line = capsys.readouterr().err
    assert (caught.value.code, line.count("\n")) == (2, 1)
    assert "model_00001.pt" in line


def with_losses(run, losses):
    """`run`, with these validation losses {step: loss} instead of measured ones; 0 at step 0."""

    def measure(run):
        run.state.record_validation(losses.get(run.state.step, 0.0))
        return {}

    run.evaluations[0].measure = measure
    return run


LOSSES = {1: 6.0, 2: 3.0, 3: float("nan"), 4: 4.0, 5: 3.0, 6: 2.0, 7: 2.0, 8: 7.0}
EACH_STEP = {"max_steps": 8, "val_interval": 1, "dropout": 0.1}


@pytest.mark.parametrize("interval", [0, 1, 2])
def test_best_is_written_at_each_improvement_and_only_then(make_run, tmp_path, monkeypatch, interval, capsys):
    run = with_losses(make_run(**EACH_STEP, checkpoint_interval=interval, keep_last=2), LOSSES)
    best, written = checkpoint.best_path(tmp_path / "log"), []
    next_step = run.loader.next_step

    def next_step_and_look():
        if best.exists() and (not written or best.stat().st_ino != written[-1][1]):
            written.append((checkpoint.load(best)["step"], best.stat().st_ino))
        return next_step()

    run.loader.next_step = next_step_and_look
    train(run)
    assert [step for step, _ in written] == [1, 2, 6]
    numbered = {0: [8], 1: [7, 8], 2: [6, 8]}[interval]
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == numbered
    assert best.stat().st_nlink == (2 if interval == 2 else 1), "linked to a numbered one that was due, and is kept"
    assert (
        f"best validation loss: 2.0000 at step 6, 5.0000 below the last (7.0000 at step 8): {best}"
        in capsys.readouterr().out
    )
    resumed = checkpoint.load(best)
    assert (resumed["step"], resumed["best"], resumed["validations_since_best"]) == (6, (2.0, 6), 0)
    assert read(str(tmp_path / "log")).source.endswith("model_00008.pt (step 8)")
    assert read(str(tmp_path / "log"), best=True).source.endswith("model_best.pt (step 6)")


def test_patience_ends_a_run_whether_it_was_killed_or_not(make_run, tmp_path, capsys):
    """The validations at steps 3, 4 and 5 are not better than the one at step 2."""
    settings = EACH_STEP | {"patience": 3, "checkpoint_interval": 1, "keep_last": 0, "sample_interval": 8}
    run = with_losses(make_run(**settings), LOSSES)
    train(run)
    ended = final_state(tmp_path / "log")
    assert (ended["step"], ended["val_step"], ended["best"]) == (5, 5, (3.0, 2))
    printed = capsys.readouterr().out
    assert "done, stopped after step 5 and 3 validations without improvement: " in printed
    assert "[Sample 4]" in printed, "with all evaluations of the end"
    with pytest.raises(NothingToDo, match=r"finished: .* after step 5 and 3 validations .* add --patience 6"):
        make_run(**settings, resume=True)
    for step in (4, 5):  # as if it had been killed after step 3
        (tmp_path / "log" / f"model_{step:05d}.pt").unlink()
    train(with_losses(make_run(**settings, resume=True), LOSSES))
    assert_bit_identical(final_state(tmp_path / "log"), ended)
    train(with_losses(make_run(**settings | {"patience": 4}, resume=True), LOSSES))
    assert final_state(tmp_path / "log")["step"] == 8, "step 6 is better than step 2"


@pytest.mark.parametrize("left", ["older", "none", "damaged", "newer"])
def test_best_of_a_resumed_run_is_kept(make_run, tmp_path, left):
    """An earlier version kept the best as a numbered one; a kill between two writes leaves an older best."""
    settings = EACH_STEP | {"checkpoint_interval": 1, "keep_last": 0}
    train(with_losses(make_run(**settings), LOSSES))
    log, best = tmp_path / "log", checkpoint.best_path(tmp_path / "log")
    expected = checkpoint.path_of(log, 2).read_bytes()
    if left == "newer":  # of the steps after the checkpoint to resume from, which the run repeats
        expected = best.read_bytes()
    else:
        best.unlink()
    if left == "older":
        best.write_bytes(checkpoint.path_of(log, 1).read_bytes())
    if left == "damaged":
        best.write_bytes(b"damaged")
    for step in range(5, 9):
        checkpoint.path_of(log, step).unlink()
    run = with_losses(make_run(**settings | {"keep_last": 1, "max_steps": 5}, resume=True), LOSSES)
    train(run)
    assert list(checkpoint.list_checkpoints(log)) == [5]
    assert best.read_bytes() == expected


def test_resume_takes_the_best_where_no_numbered_checkpoint_is_good(make_run, tmp_path, capsys):
    settings = BUSY | {"val_interval": 1, "checkpoint_interval": 0}
    train(make_run(**settings))
    undisturbed = final_state(tmp_path / "log")
    best = checkpoint.best_path(tmp_path / "log")
    assert undisturbed["best"][1] == 8
    train(make_run(**settings | {"max_steps": 3, "log_dir": tmp_path / "short"}))  # the same run after 3 steps
    best.unlink()
    best.write_bytes((tmp_path / "short" / "model_best.pt").read_bytes())
    (tmp_path / "log" / "model_00008.pt").write_bytes(b"damaged")
    run = make_run(**settings, resume=True)
    assert f"resuming from {best}" in capsys.readouterr().out
    assert run.state.step == 3
    train(run)
    for name, weight in undisturbed["model"].items():
        assert torch.equal(final_state(tmp_path / "log")["model"][name], weight)


def test_resume_from_a_checkpoint_of_an_earlier_version(make_run, tmp_path):
    train(make_run(max_steps=2))
    path = checkpoint.path_of(tmp_path / "log", 2)
    content = checkpoint.load(path)
    del content["validations_since_best"], content["format_version"]
    checkpoint.save(path, content)
    run = make_run(max_steps=3, patience=1, val_interval=1, resume=True)
    assert (run.state.validations_since_best, run.state.best) == (0, content["best"])


def test_best_that_cannot_be_written_is_named(make_run, tmp_path, monkeypatch, capsys):
    def fail(source, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "link_or_copy", fail)
    run = make_run(max_steps=1)
    with pytest.raises(UserError, match=r"done, but .*model_best\.pt could not be written"):
        train(run)
    assert "model_best.pt (No space left on device); earlier files are unchanged" in capsys.readouterr().out
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [1]


@pytest.mark.parametrize("policy", ["continue", "stop"])
def test_save_that_fails_harms_no_other_checkpoint(make_run, tmp_path, monkeypatch, capsys, policy):
    save = checkpoint.save

    def fail_at_4(path, state):
        if state["step"] == 4:
            raise OSError(28, "No space left on device")
        save(path, state)

    monkeypatch.setattr(checkpoint, "save", fail_at_4)
    run = make_run(max_steps=6, checkpoint_interval=2, on_checkpoint_error=policy)
    if policy == "stop":
        with pytest.raises(UserError, match="stopped at step 4"):
            train(run)
    else:
        train(run)
    assert "model_00004.pt (No space left on device)" in capsys.readouterr().out
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == ([2] if policy == "stop" else [2, 6])


def test_save_never_prunes_good_checkpoints_for_damaged_ones(make_run, tmp_path):
    """A resumed run goes back behind a damaged checkpoint; with keep_last = 1 that one must not replace the good."""
    settings = {"max_steps": 6, "checkpoint_interval": 2, "keep_last": 0}
    train(make_run(**settings))
    found = checkpoint.list_checkpoints(tmp_path / "log")
    for step in (4, 6):
        found[step].write_bytes(b"damaged")
    run = make_run(**settings | {"keep_last": 2, "max_steps": 5, "checkpoint_interval": 0}, resume=True)
    train(run)
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [2, 4, 5, 6]
    checkpoint.prune(tmp_path / "log", 1, run.good_steps)
    assert list(checkpoint.list_checkpoints(tmp_path / "log")) == [5, 6]


@pytest.mark.parametrize("failing", ["model_00005.pt", "plot.png", "log.txt"])
def test_finish_exits_2_and_names_what_could_not_be_written(corpus, tmp_path, monkeypatch, capsys, failing):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    target = {"model_00005.pt": (checkpoint, "save"), "plot.png": (evaluation, "plot_runs")}.get(failing)
    if target:
        monkeypatch.setattr(*target, fail)
    else:
        monkeypatch.setattr(runlog.RunLog, "is_complete", lambda log: False)
    with pytest.raises(SystemExit) as stop:
        train_gpt2.main(as_flags(TINY | {"data_dir": corpus, "log_dir": tmp_path / "log"}))
    assert stop.value.code == 2
    missing = [failing, "model_best.pt"] if failing.startswith("model") else [failing]
    names = ", ".join(str(tmp_path / "log" / name) for name in missing)
    assert f"done, but {names} could not be written" in capsys.readouterr().err
    assert (tmp_path / "log" / "model_00005.pt").exists() == (failing != "model_00005.pt")


def test_save_writes_only_what_weights_only_reads(make_run, tmp_path):
    train(make_run(dropout=0.1, skip_loss_zscore=6.0))

    def check(value):
        assert type(value) in (torch.Tensor, int, float, str, bool, type(None), dict, list, tuple), type(value)
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, (list, tuple)):
            for item in value:
                check(item)

    check({k: v for k, v in final_state(tmp_path / "log").items() if k != "model"})


def test_log_dir_with_an_unfinished_run_needs_resume(corpus, tmp_path, capsys):
    settings = as_flags(TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1})
    train_gpt2.main(settings)
    (tmp_path / "log" / "model_00001.pt").unlink()  # only the log is left
    with pytest.raises(SystemExit):
        train_gpt2.main(settings)
    assert "already holds a run" in capsys.readouterr().err
