"""A sweep trains each point of its grid once, resumes, and finds mistakes before the first run."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers import TINY, as_flags

import sweep
import train_gpt2
from system.lock import folder_lock
from tracking.runlog import RunLog, read_config


def flags_of(corpus, folder, **settings):
    return as_flags(TINY | {"data_dir": corpus, "log_dir": folder, "max_steps": 3} | settings)


def last_table(text):
    return text.split("\n\n")[-1].splitlines()


def run_in_process(point, stop):
    train_gpt2.main([*point.arguments, "--resume"])
    return 0


def test_sweep_trains_each_point_once_and_sorts_by_loss(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "run_point", run_in_process)  # saves starting two processes
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-4,1e-2")
    sweep.main(flags)
    table = last_table(capsys.readouterr().out)
    assert [line.split()[0] for line in table[:3]] == ["max_lr", "1e-2", "1e-4"]
    assert (tmp_path / "sweep" / "plot.png").exists()
    for text in ("1e-4", "1e-2"):
        assert read_config(tmp_path / "sweep" / f"max_lr={text}")["config"]["max_lr"] == float(text)
    before = {path: path.read_bytes() for path in tmp_path.glob("sweep/*/*.pt")}
    sweep.main(flags)
    again = capsys.readouterr().out
    assert again.count("already done") == 2
    assert "device:" not in again
    assert last_table(again) == table
    assert {path: path.read_bytes() for path in tmp_path.glob("sweep/*/*.pt")} == before


def test_sweep_that_is_stopped_saves_its_run(corpus, tmp_path, capfd):
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-3,1e-2", max_steps=100000)
    log = tmp_path / "sweep" / "max_lr=1e-3" / "log.txt"

    def stop_after_three_steps():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log.exists() and "3 train" in log.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)  # the sweep only, not the training process

    threading.Thread(target=stop_after_three_steps).start()
    sweep.main(flags)
    assert "stopped on request; run the same command again to resume" in capfd.readouterr().out
    assert len(list((tmp_path / "sweep").glob("*/*.pt"))) == 1


def test_sweep_trains_a_point_again_whose_last_checkpoint_is_damaged(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sweep, "run_point", run_in_process)
    flags = flags_of(corpus, tmp_path / "sweep", max_steps=1)
    sweep.main(flags)
    last = tmp_path / "sweep" / "only" / "model_00001.pt"
    good = last.read_bytes()
    last.write_bytes(good[:1000])
    (tmp_path / "sweep" / "only" / "model_00000.pt").write_bytes(good)  # to resume from
    sweep.main(flags)
    assert "already done" not in capsys.readouterr().out


def test_sweep_has_one_process_at_a_time(corpus, tmp_path, capsys):
    with folder_lock(tmp_path / "sweep"), pytest.raises(SystemExit):
        sweep.main(flags_of(corpus, tmp_path / "sweep"))
    assert "sweep is in use by process" in capsys.readouterr().err


def points(*argv):
    return sweep.make_grid([*argv])[1]


def test_make_grid_gives_every_combination_in_order():
    names = [point.log_dir.name for point in points("--max_lr=1e-3,6e-4", "--B=4,8", "--log_dir=log/x")]
    assert names == ["max_lr=1e-3,B=4", "max_lr=1e-3,B=8", "max_lr=6e-4,B=4", "max_lr=6e-4,B=8"]
    assert [point.settings.B for point in points("--B=4,8", "--seed=1")] == [4, 8]
    assert [point.log_dir for point in points("--seed=1", "--log_dir=log/x")] == [Path("log/x/only")]
    assert sweep.make_grid(["config/debug.py", "--B=4,8"])[0].name == "debug_sweep"


def test_make_grid_does_not_split_a_prompt_at_commas():
    grid = points("--sample_prompt=Hello, world", "--optimizer=adamw,muon")
    assert [point.settings.optimizer for point in grid] == ["adamw", "muon"]
    assert {point.settings.sample_prompt for point in grid} == {"Hello, world"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max_lr=1e-3,high"], "--max_lr = 'high': expected a number"),
        (["--total_batch_size=1048576", "--B=4,3"], "not a multiple"),
        (["--log_dir=a,b"], "expected one folder"),
        (["--B=4,4"], "two runs of the grid are the same"),
        (["--max_lrr=1,2"], "did you mean max_lr"),
        (["--n_head=12,5"], "not divisible by n_head = 5"),
        (["--nproc_per_node=0"], "nproc_per_node = 0: expected at least 1"),
        (["--max_lr=1,nan"], "max_lr = nan"),
        (["--data_dir=" + "x" * 300 + ",y"], "more than 255 bytes"),
    ],
)
def test_error_anywhere_in_the_grid_is_reported_before_the_first_run(capsys, monkeypatch, argv, words):
    monkeypatch.setattr(sweep, "run_point", lambda *_: pytest.fail("a run started"))
    with pytest.raises(SystemExit) as stop:
        sweep.main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_folder_with_a_run_of_other_settings_is_refused(corpus, tmp_path, capsys):
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-3,2e-3")
    folder = points(*flags)[0].log_dir
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"config": {"weight_decay": 0.5}}')
    with pytest.raises(SystemExit):
        sweep.main(flags)
    assert "holds a run with weight_decay = 0.5, but this sweep has 0.1" in capsys.readouterr().err


def test_failed_run_is_reported_and_the_others_still_run(tmp_path, capsys, monkeypatch):
    def run_point(point, stop):
        point.log_dir.mkdir(parents=True)
        RunLog(point.log_dir).write(0, val=2.0, train=2.0, tok_per_sec=1.0)
        return 2 if point.settings.B == 4 else 0

    monkeypatch.setattr(sweep, "run_point", run_point)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--B=4,8", f"--log_dir={tmp_path}"])
    assert stop.value.code == 1
    output = capsys.readouterr().out
    assert "failed (exit code 2)" in output
    assert "1 failed; run the same command again to resume" in output
