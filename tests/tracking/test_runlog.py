"""The log is written line by line, read back by stream, and has each step once after a resume."""

import numpy as np
import pytest

from tracking.runlog import RunLog, read_log


def test_read_log_returns_what_was_written(tmp_path):
    log = RunLog(tmp_path)
    log.write(0, val=10.9876543)
    log.write(0, train=10.9, lr=6e-4 / 715, norm=1.5, dt_ms=95.25, tok_per_sec=172000.4, mfu=0.41)
    log.write(250, val=3.2924, hella=0.2945)
    log.close()
    streams = read_log(tmp_path)
    assert set(streams) == {"val", "train", "lr", "norm", "dt_ms", "tok_per_sec", "mfu", "hella"}
    assert streams["val"].steps.tolist() == [0, 250]
    assert streams["val"].values.tolist() == [10.987654, 3.2924]
    assert streams["lr"].values[0] == pytest.approx(6e-4 / 715, rel=1e-6)


def test_write_separates_three_fields_by_a_space(tmp_path):
    RunLog(tmp_path).write(251, train=3.410022)
    assert (tmp_path / "log.txt").read_text() == "251 train 3.410022\n"


def test_read_log_skips_incomplete_and_foreign_lines_with_a_warning(tmp_path):
    path = tmp_path / "log.txt"
    path.write_bytes(b"0 val 3.5\nhello\n1 train x\n\xff\xfe\n2 train 3.25\n3 train 3.2")
    with pytest.warns(UserWarning, match="expected STEP STREAM VALUE") as warned:
        streams = read_log(path)
    assert [str(w.message).split(":")[1] for w in warned] == ["2", "3", "4", "6"]
    assert streams["train"].steps.tolist() == [2]


def test_resume_removes_the_lines_that_are_written_again(tmp_path):
    log = RunLog(tmp_path)
    for step in range(6):
        log.write(step, train=float(step))
    log.write(4, val=1.0)
    log.close()
    with open(tmp_path / "log.txt", "a") as f:
        f.write("6 tra")  # incomplete: the process was killed while writing
    with pytest.warns(UserWarning, match="6 tra"):
        log = RunLog(tmp_path, from_step=4)
    for step in range(4, 8):
        log.write(step, train=10.0 + step)
    log.close()
    streams = read_log(tmp_path)
    assert streams["train"].steps.tolist() == list(range(8))
    assert streams["train"].values.tolist() == [0, 1, 2, 3, 14, 15, 16, 17]
    assert "val" not in streams


def test_read_log_keeps_values_that_are_not_finite(tmp_path):
    RunLog(tmp_path).write(3, train=float("nan"), norm=float("inf"))
    streams = read_log(tmp_path)
    assert np.isnan(streams["train"].values[0])
    assert np.isinf(streams["norm"].values[0])
