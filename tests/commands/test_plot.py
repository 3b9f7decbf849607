"""Plots show what the log says, name each run, and draw a published figure only where it can be compared."""

import json

import numpy as np
import pytest
from helpers import run_script

import plot
from tracking.runlog import RunLog

EDU = {"source": "HuggingFaceFW/fineweb-edu sample-10BT", "tokenizer": "gpt2"}


def write_run(folder, *, steps=40, streams=("train", "val", "hella"), data=None, size=(12, 768), every=1, nan=False):
    """A log of a made-up run with a falling loss, and its config.json."""
    folder.mkdir(parents=True)
    log = RunLog(folder)
    for step in range(steps + 1):
        loss = 3.0 + 8 / (1 + step)
        if step % 10 == 0:
            log.write(step, **{name: {"val": loss + 0.1, "hella": 0.25 + step / 1000}[name] for name in streams[1:]})
        if step % every == 0 and step < steps:
            bad = {"train": np.nan, "norm": np.inf} if nan and step == 5 else {}
            log.write(step, **{"train": loss, "lr": 1e-3, "norm": 1.0} | bad, dt_ms=100.0, tok_per_sec=5120.0)
    log.close()
    config = {"total_batch_size": 512, "optimizer": "adamw", "max_lr": 1e-3, "data_dir": "data/mine"}
    model = {"n_layer": size[0], "n_embd": size[1], "parameters": 10**6}
    (folder / "config.json").write_text(json.dumps({"config": config, "data": data or {}, "model": model}))
    return folder


def panels(figure):
    return {axis.get_label(): axis for half in figure.subfigs for axis in half.axes}


def texts(axis):
    return [text.get_text() for text in axis.texts]


def drawn(axis):
    """The values of each line that has a point on more than one place."""
    return [line.get_ydata() for line in axis.lines if len(line.get_ydata()) > 2]


def test_the_curves_are_those_of_the_log(tmp_path):
    axes = panels(plot.draw_runs([write_run(tmp_path / "a")]))
    raw, _, val = drawn(axes["loss"])
    np.testing.assert_allclose(raw, 3.0 + 8 / (1 + np.arange(40)), atol=1e-6)
    np.testing.assert_allclose(val, 3.1 + 8 / (1 + np.arange(0, 41, 10)), atol=1e-6)
    np.testing.assert_allclose(drawn(axes["hella"])[0], [0.25, 0.26, 0.27, 0.28, 0.29])
    assert "val 3.2951" in texts(axes["loss"])
    assert set(axes) == {"loss", "hella", "lr", "norm", "speed"}


def test_a_run_without_hellaswag_has_no_panel_for_it(tmp_path):
    assert "hella" not in panels(plot.draw_runs([write_run(tmp_path / "a", streams=("train", "val"))]))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (EDU, True),
        (EDU | {"tokenizer": "byte"}, False),
        (EDU | {"source": "HuggingFaceFW/fineweb sample-10BT"}, False),
        ({"source": "shakespeare", "tokenizer": "gpt2"}, False),
    ],
)
def test_gpt2s_loss_is_drawn_only_on_fineweb_edu_in_its_tokens(tmp_path, data, shown):
    axis = panels(plot.draw_runs([write_run(tmp_path / "a", data=data)]))["loss"]
    assert ("GPT-2 124M 3.2924" in texts(axis)) == shown
    assert any(np.allclose(line.get_ydata(), 3.2924) for line in axis.lines) == shown


def test_hellaswag_figures_are_those_of_the_models_size(tmp_path):
    labels = texts(panels(plot.draw_runs([write_run(tmp_path / "a", size=(24, 1024))]))["hella"])
    assert {"GPT-2 350M 0.375", "GPT-3 350M 0.436", "chance 0.250"} < set(labels)
    assert not any("124M" in label for label in labels)


def test_several_runs_bear_their_names_in_colours_of_their_own(tmp_path):
    folders = [write_run(tmp_path / parent / "run") for parent in ("a", "b")] + [write_run(tmp_path / "c")]
    axis = panels(plot.draw_runs(folders))["loss"]
    named = {text.get_text().split(":")[0]: text.get_color() for text in axis.texts}
    assert set(named) == {"a/run", "b/run", "c"}
    assert len(set(named.values())) == 3
    assert {line.get_color() for line in axis.lines} == set(named.values())


def test_labels_never_overlap_and_stay_by_their_curves():
    wanted = [*sorted(np.random.default_rng(0).random(20)), 1.0, 1.0]
    places = plot.spread(wanted, 0.04)
    assert np.diff(places).min() >= 0.04 - 1e-9
    assert plot.spread([0.1, 0.5, 0.9], 0.04) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(plot.spread([0.5, 0.5], 0.04), [0.48, 0.52])
    assert min(plot.spread([0.0, 0.0, 0.0], 0.04)) == 0.0


def test_the_x_axis_counts_steps_tokens_or_hours(tmp_path):
    folder = write_run(tmp_path / "a", every=4)
    expected = {"steps": 1.0, "tokens": 512.0, "hours": 0.1 / 3600}  # a step; also of those that were not logged
    for x, unit in expected.items():
        axis = panels(plot.draw_runs([folder], x))["loss"]
        val = next(line for line in axis.lines if line.get_linestyle() == "--")
        np.testing.assert_allclose(val.get_xdata()[:4], unit * np.arange(0, 31, 10))


def test_smoothing_is_a_mean_without_lag_that_leaves_out_nans():
    line = np.arange(300.0)
    np.testing.assert_allclose(plot.smooth(line)[:295], line[:295])
    line[50] = np.nan
    assert np.isfinite(plot.smooth(line)).all()
    assert plot.smooth(np.array([])).size == 0
    noise = np.random.default_rng(0).normal(size=600)
    expected = [noise[max(0, i - min(i, 10)) : i + min(i, 10) + 1].mean() for i in range(600)]
    np.testing.assert_allclose(plot.smooth(noise), expected, atol=1e-12)


def test_logs_with_gaps_and_from_elsewhere_are_drawn(tmp_path):
    broken = write_run(tmp_path / "nan", nan=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "log.txt").write_text("0 val 10.9\n0 hella 0.2505\n0 train 10.95\n1 train 9.5\nnot a line\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "log.txt").write_text("")
    plot.plot_runs([broken, foreign, empty], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_a_png_and_names_mistakes_in_a_line(tmp_path):
    folder = write_run(tmp_path / "a")
    done = run_script("plot.py", folder, "--x=hours")
    assert done.stdout == f"wrote {folder}/plot.png\n"
    (folder / "config.json").unlink()
    mistakes = {
        (): "no LOG_DIR given",
        (tmp_path / "absent",): "holds no log.txt",
        (folder, "--x=tokens"): "no config.json",
        (folder, folder): "given twice",
    }
    for arguments, words in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            plot.main([*map(str, arguments)])
        assert stop.value.code == 2, words
