"""The folder of a run: an earlier run stays whole until the new one has begun; one process; room for a checkpoint."""

import shutil

import pytest
from helpers import TINY, as_flags

import train_gpt2
from formats import checkpoint
from system.lock import folder_lock
from tracking.runlog import RunLog
from training import run_folder, setup

pytestmark = pytest.mark.usefixtures("empty_plots")


@pytest.fixture
def old_run(corpus, tmp_path):
    """(settings of a run that is done, its log_dir)."""
    settings = TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1}
    train_gpt2.main(as_flags(settings))
    return settings, tmp_path / "log"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refused(capsys, settings):
    """The one line with which train_gpt2.py refuses the settings."""
    with pytest.raises(SystemExit) as stop:
        train_gpt2.main(as_flags(settings))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_overwrite_that_cannot_begin_leaves_the_old_run_whole(old_run, capsys, monkeypatch):
    settings, log_dir = old_run
    before = contents(log_dir)
    for change in (
        {"data_dir": "absent"},
        {"n_head": 3},
        {"init_from": log_dir},
        {"init_from": log_dir / "model_00001.pt"},
    ):
        refused(capsys, settings | {"overwrite": True} | change)
        assert contents(log_dir) == before

    def fail(run, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup, "write_record", fail)
    assert "No space left on device; free some space" in refused(capsys, settings | {"overwrite": True})
    assert contents(log_dir) == before


def test_overwrite_replaces_the_old_run(old_run):
    settings, log_dir = old_run
    train_gpt2.main(as_flags(settings | {"overwrite": True, "max_steps": 2}))
    assert sorted(contents(log_dir)) == ["config.json", "log.txt", "model_00002.pt", "model_best.pt", "plot.png"]


def test_replacement_that_was_killed_leaves_one_whole_run(old_run):
    _, log_dir = old_run
    before = contents(log_dir)
    run_folder.move_aside(log_dir)
    RunLog(log_dir).write(0, train=1.0)
    run_folder.finish_replacement(log_dir)  # of the next start, after a kill here
    assert contents(log_dir) == before
    run_folder.move_aside(log_dir)
    RunLog(log_dir).write(0, train=1.0)
    (log_dir / run_folder.ASIDE).rename(log_dir / run_folder.DELETED)
    run_folder.finish_replacement(log_dir)  # after a kill while the old run was being deleted
    assert list(contents(log_dir)) == ["log.txt"]


def test_second_run_in_a_folder_is_refused(old_run, capsys):
    settings, log_dir = old_run
    before = contents(log_dir)
    with folder_lock(log_dir):
        for flag in ("resume", "overwrite"):
            assert f"{log_dir} is in use by process" in refused(capsys, settings | {flag: True})
    assert contents(log_dir) == before


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_room_for_a_checkpoint_is_checked_first(old_run, capsys, monkeypatch, flag):
    settings, log_dir = old_run
    before = contents(log_dir)
    size = checkpoint.path_of(log_dir, 1).stat().st_size
    assert checkpoint.best_path(log_dir).stat().st_nlink == 2, "its space counts once"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 0, size // 2))
    if flag == "overwrite":  # the old run's checkpoints make room
        train_gpt2.main(as_flags(settings | {flag: True}))
    else:
        assert "are free: free some space" in refused(capsys, settings | {flag: True, "max_steps": 2})
        assert contents(log_dir) == before


@pytest.mark.parametrize("log_dir", ["file", "file/x", "x" * 300])
def test_log_dir_that_cannot_be_written_is_named(corpus, tmp_path, capsys, log_dir):
    (tmp_path / "file").touch()
    line = refused(capsys, TINY | {"data_dir": corpus, "log_dir": tmp_path / log_dir})
    assert f"{tmp_path / log_dir} cannot be written" in line
    assert [path.name for path in tmp_path.iterdir() if path.name != "data"] == ["file"]
