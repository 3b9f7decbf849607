"""The line of a step: time left, MFU, and how often it is printed."""

import re

import pytest

from training import costs, progress


class Clock:
    """Replaces `time` in training.progress: its time is set by the test."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def timed(make_run, monkeypatch, capsys):
    """A function that reports steps: pairs (seconds of the pause before the step, seconds of the step)."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)

    def report(times, **settings):
        run = make_run(**settings)
        run.progress.start(0)
        capsys.readouterr()
        for step, (pause, seconds) in enumerate(times):
            clock.now += pause
            run.progress.restart()
            clock.now += seconds
            run.progress.report(step, 1.0, 1e-3, 1.0)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]

    return report


def seconds_left(line):
    hours, minutes, seconds = map(int, re.search(r"(\d+):(\d+):(\d+) left", line).groups())
    return 3600 * hours + 60 * minutes + seconds


def test_time_left_counts_a_validation_once_for_each_that_is_due(timed):
    lines = timed([(30, 9), (0, 2), (0, 2)], max_steps=101, val_interval=50, checkpoint_interval=0)
    assert seconds_left(lines[2]) == 98 * 2 + 2 * 30, "the first step, which compiles, does not count"
    lines = timed([(30, 9), (0, 2)], max_steps=101, val_interval=0)
    assert seconds_left(lines[1]) == 99 * 2 + 30


def test_mfu_above_1_measures_the_peak_again_and_is_marked(timed, monkeypatch):
    peaks = iter([1e3, 1e12])  # FLOP/s: the first one measured under load
    monkeypatch.setattr(costs, "peak_flops", lambda device, dtype: next(peaks))
    assert "0% mfu |" in timed([(0, 1.0)])[0]
    monkeypatch.setattr(costs, "peak_flops", lambda device, dtype: 1e3)
    assert "% mfu (of a peak measured too low) |" in timed([(0, 1.0)])[0]


def test_terminal_gets_a_few_lines_a_second_and_the_log_all(timed, monkeypatch, tmp_path):
    times = [(0, 0.02)] * 50
    assert len(timed(times, max_steps=50)) == 50
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    lines = timed(times, max_steps=50)
    assert 3 <= len(lines) <= 6
    assert lines[-1].startswith("step   49 |")
    assert (tmp_path / "log" / "log.txt").read_text().count(" train ") == 50
