"""A sweep runs each point of its grid once, goes on where it was stopped, and finds mistakes before the first run."""

import signal
import subprocess
import sys

import pytest
from helpers import ROOT, TINY, as_flags, run_script

import sweep
from tracking.runlog import RunLog, read_config


def flags_of(corpus, folder, **settings):
    return as_flags(TINY | {"data_dir": corpus, "log_dir": folder, "max_steps": 3} | settings)


def test_a_sweep_trains_the_grid_once_and_shows_the_best_first(corpus, tmp_path):
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-4,1e-2")
    done = run_script("sweep.py", *flags)
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("\n\n")[-1].splitlines()
    assert [line.split()[0] for line in table[:3]] == ["max_lr", "1e-2", "1e-4"]
    assert (tmp_path / "sweep" / "plot.png").exists()
    for text in ("1e-4", "1e-2"):
        assert read_config(tmp_path / "sweep" / f"max_lr={text}")["config"]["max_lr"] == float(text)
    before = {path: path.read_bytes() for path in tmp_path.glob("sweep/*/*.pt")}
    again = run_script("sweep.py", *flags)
    assert again.stdout.count("done before") == 2
    assert "device:" not in again.stdout
    assert again.stdout.split("\n\n")[-1].splitlines() == table
    assert {path: path.read_bytes() for path in tmp_path.glob("sweep/*/*.pt")} == before


def test_a_stopped_sweep_saves_its_run_and_goes_on_from_there(corpus, tmp_path):
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-3,1e-2", max_steps=100000)
    process = subprocess.Popen(
        [sys.executable, "sweep.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if line.startswith("step    3 "):
            break
    process.send_signal(signal.SIGTERM)  # to the sweep alone
    output = process.stdout.read()
    assert process.wait(30) == 0, output
    assert "the same command goes on" in output
    assert len(list((tmp_path / "sweep").glob("*/*.pt"))) == 1


def points(*argv):
    return sweep.make_grid([*argv])[1]


def test_the_grid_is_every_combination_in_order():
    names = [point.name for point in points("--max_lr=1e-3,6e-4", "--B=4,8", "--log_dir=log/x")]
    assert names == ["max_lr=1e-3,B=4", "max_lr=1e-3,B=8", "max_lr=6e-4,B=4", "max_lr=6e-4,B=8"]
    assert [point.config.B for point in points("--B=4,8", "--seed=1")] == [4, 8]
    assert sweep.make_grid(["config/debug.py", "--B=4,8"])[0].name == "debug_sweep"


def test_a_comma_in_a_prompt_is_only_a_comma():
    only = points("--sample_prompt=Hello, world", "--optimizer=adamw,muon")
    assert [point.config.optimizer for point in only] == ["adamw", "muon"]
    assert {point.config.sample_prompt for point in only} == {"Hello, world"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max_lr=1e-3,high"], "--max_lr = 'high': expected a number"),
        (["--total_batch_size=1048576", "--B=4,3"], "not a multiple"),
        (["--log_dir=a,b"], "one folder"),
        (["--B=4,4"], "the same"),
        (["--max_lrr=1,2"], "did you mean max_lr"),
    ],
)
def test_a_mistake_anywhere_in_the_grid_shows_before_the_first_run(capsys, monkeypatch, argv, words):
    monkeypatch.setattr(sweep, "run_point", lambda *_: pytest.fail("a run began"))
    with pytest.raises(SystemExit) as stop:
        sweep.main(argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_runs_of_other_settings_are_not_taken_for_these(corpus, tmp_path, capsys):
    flags = flags_of(corpus, tmp_path / "sweep", max_lr="1e-3,2e-3")
    folder = sweep.make_grid(flags)[1][0].config.log_dir
    sweep.Path(folder).mkdir(parents=True)
    (sweep.Path(folder) / "config.json").write_text('{"config": {"weight_decay": 0.5}}')
    with pytest.raises(SystemExit):
        sweep.main(flags)
    assert "was made with weight_decay = 0.5, asked for is 0.1" in capsys.readouterr().err


def test_a_failed_run_is_told_and_the_others_go_on(tmp_path, capsys, monkeypatch):
    def run(point, stop):
        sweep.Path(point.config.log_dir).mkdir(parents=True)
        RunLog(point.config.log_dir).write(0, val=2.0, train=2.0, tok_per_sec=1.0)
        return 2 if point.config.B == 4 else 0

    monkeypatch.setattr(sweep, "run_point", run)
    with pytest.raises(SystemExit) as stop:
        sweep.main(["--B=4,8", f"--log_dir={tmp_path}"])
    assert stop.value.code == 1
    table = capsys.readouterr().out
    assert "failed (exit code 2)" in table
    assert "1 failed - the same command goes on" in table
