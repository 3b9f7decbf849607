"""Scaling plots: which runs become points, where they lie, and the power law through them."""

import json

import numpy as np
import pytest

from system.errors import UserError
from tracking import scaling
from tracking.runlog import RunLog
from tracking.scaling import AXES, log_ticks, lowest_so_far, plot_scaling, read_points


def write_run(folder, *, n=10**5, val=2.0, steps=100, data=None, model=None, **streams):
    """Write the log and config.json of an invented run of 100 steps that has got as far as `steps`."""
    folder.mkdir(parents=True)
    log = RunLog(folder)
    log.write(0, val=5.5, train=5.5)
    log.write(steps, val=val, **streams)
    log.close()
    record = {
        "config": {"max_steps": 100, "total_batch_size": 512, "data_dir": "d"},
        "data": {"tokenizer": "byte", "source": "a test"} | (data or {}),
        "model": {"non_embedding_parameters": n, "flops_per_token": 6 * n} if model is None else model,
    }
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def draw(folders, x="params"):
    return scaling.draw_scaling(read_points(folders, AXES[x])[0], AXES[x])


def legend(panel):
    return "" if panel.get_legend() is None else panel.get_legend().get_texts()[0].get_text()


def test_extreme_numbers_are_drawn(tmp_path):
    for i, val in enumerate((1e20, 1.0, 1e-6)):
        write_run(tmp_path / str(i), n=10**6 + i, val=val)
    assert plot_scaling(sorted(tmp_path.iterdir()), tmp_path / "x.png", "params") == []


def test_lowest_so_far_is_the_best_run_of_each_size_and_the_frontier():
    x, losses = np.array([3, 1, 1, 2, 4.0]), np.array([2.0, 5, 4, 4.5, 1])
    assert lowest_so_far(x, losses).tolist() == [True, False, True, False, True]


def test_points_are_the_final_losses_over_size_and_compute(tmp_path):
    folders = [
        write_run(tmp_path / f"run{n}", n=n, val=8 * n**-0.2, hella=0.25 + n / 1e7) for n in (10**4, 10**5, 10**6)
    ]
    for x, positions in {"params": (1e4, 1e5, 1e6), "flops": (6e4 * 51200, 6e5 * 51200, 6e6 * 51200)}.items():
        losses, scores = draw(folders, x).axes
        points = [line for line in losses.lines if len(line.get_xdata()) == 1]
        assert [line.get_xdata()[0] for line in points] == list(positions)
        np.testing.assert_allclose(
            [line.get_ydata()[0] for line in points], [8 * n**-0.2 for n in (1e4, 1e5, 1e6)], rtol=1e-5
        )
        assert [line.get_ydata()[0] for line in scores.lines[:3]] == [0.251, 0.26, 0.35]
        assert "^-0.200, within 0.00%" in legend(losses)
        assert "run100000 0.8000" in [text.get_text() for text in losses.texts]
    assert legend(draw(folders[:2]).axes[0]) == ""
    assert len(draw(folders[:1]).axes) == 2


def test_runs_that_are_not_fitted_are_hollow(tmp_path):
    folders = [
        write_run(tmp_path / f"{n}_{factor}", n=n, val=factor * 8 * n**-0.2)
        for factor in (1, 2)
        for n in (10**4, 10**5, 10**6)
    ]
    [panel] = draw(folders).axes
    faces = [line.get_markerfacecolor() for line in panel.lines if len(line.get_xdata()) == 1]
    assert [face == "none" for face in faces] == [False] * 3 + [True] * 3
    assert "through the 3 filled points" in legend(panel)


def test_runs_without_what_is_needed_are_named(tmp_path):
    write_run(tmp_path / "whole", hella=np.nan)
    write_run(tmp_path / "stopped", steps=50)
    write_run(tmp_path / "nan", val=np.nan)
    write_run(tmp_path / "old", model={})
    write_run(tmp_path / "zero", n=0)
    write_run(tmp_path / "huge", n=10**400)
    write_run(tmp_path / "foreign")
    (tmp_path / "foreign" / "config.json").unlink()
    write_run(tmp_path / "empty")
    (tmp_path / "empty" / "log.txt").write_text("")
    names = ["whole", "stopped", "nan", "old", "zero", "huge", "foreign", "empty"]
    points, left_out = read_points([tmp_path / name for name in names], AXES["params"])
    assert [point.name for point in points] == ["whole"]
    assert left_out == [
        "stopped: unfinished: its last validation loss is that of step 50, max_steps is 100",
        "nan: its final validation loss is nan",
        "old: config.json has no non_embedding_parameters: an earlier version wrote it",
        "zero: config.json has an impossible number of parameters",
        "huge: config.json has an impossible number of parameters",
        "foreign: no config.json with the settings of the run",
        "empty: its log has no validation loss",
    ]
    with pytest.raises(UserError, match="no run can be drawn with --x params: nan: its final validation loss is nan"):
        plot_scaling([tmp_path / "nan"], tmp_path / "x.png", "params")
    assert not (tmp_path / "x.png").exists()


def test_title_warns_where_losses_do_not_compare(tmp_path):
    folders = [
        write_run(tmp_path / name, n=n, val=val, val_bpb=val, data={"tokenizer": name, "source": "a test"})
        for name, n, val in (("byte", 10**4, 3.0), ("gpt2", 10**5, 2.0))
    ]
    write_run(tmp_path / "other", n=10**6, val=1.0, data={"source": "other"})
    assert draw(folders).axes[0].get_ylabel() == "final validation loss, bits per byte"
    assert "warning" not in draw(folders)._suptitle.get_text()
    figure = draw([*folders, tmp_path / "other"])  # which has not measured bits per byte
    assert figure.axes[0].get_ylabel() == "final validation loss, nats per token"
    assert "warning: tokenizers byte, gpt2" in figure._suptitle.get_text()
    assert "warning: data from a test, other" in figure._suptitle.get_text()
    assert legend(figure.axes[0]) == "", "a power law through losses that do not compare"


def test_log_ticks_are_few_round_numbers():
    for low, high in (
        (1.3, 2.1),
        (1.69, 1.7),
        (3e4, 1.6e6),
        (1e3, 1e9),
        (1e-3, 1e25),
        (2, 30),
        (1.1, 4.4),
        (5.1, 20.5),
    ):
        ticks = log_ticks(low, high)
        assert 2 <= len(ticks) <= 9, (low, high, ticks)
        assert low <= ticks.min() < ticks.max() <= high
        assert all(float(f"{tick:.5g}") == pytest.approx(tick) for tick in ticks)
