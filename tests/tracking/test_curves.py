"""Plots show the values of the log, label each run, and draw published results only where they are comparable."""

import itertools
import json

import numpy as np
import pytest

from tracking import curves
from tracking.curves import Panel, smooth
from tracking.labels import Label, place_labels, spread
from tracking.runlog import RunLog

EDU = {"source": "HuggingFaceFW/fineweb-edu sample-10BT", "tokenizer": "gpt2"}


VALUES = {  # of the streams of validations, by step and loss
    "val": lambda step, loss: loss + 0.1,
    "val_bpb": lambda step, loss: (loss + 0.1) / 3,
    "hella": lambda step, loss: 0.25 + step / 1000,
}


def write_run(
    folder, *, steps=40, streams=("train", "val", "hella"), data=None, size=(12, 768), every=1, nan=False, settings=None
):
    """Write the log of an invented run with a falling loss, and its config.json; return the folder."""
    folder.mkdir(parents=True)
    log = RunLog(folder)
    for step in range(steps + 1):
        loss = 3.0 + 8 / (1 + step)
        if step % 10 == 0:
            log.write(step, **{name: VALUES[name](step, loss) for name in streams[1:]})
        if step % every == 0 and step < steps:
            bad = {"train": np.nan, "norm": np.inf} if nan and step == 5 else {}
            log.write(step, **{"train": loss, "lr": 1e-3, "norm": 1.0} | bad, dt_ms=100.0, tok_per_sec=5120.0)
    log.close()
    config = {"total_batch_size": 512, "optimizer": "adamw", "max_lr": 1e-3, "data_dir": "data/mine"} | (settings or {})
    model = {"n_layer": size[0], "n_embd": size[1], "parameters": 10**6}
    (folder / "config.json").write_text(json.dumps({"config": config, "data": data or {}, "model": model}))
    return folder


def panels(figure):
    return {axis.get_label(): axis for half in figure.subfigs for axis in half.axes}


def texts(axis):
    return [text.get_text() for text in axis.texts]


def curves_of(axis):
    """Return the y values of each line of an axis that is not a reference line."""
    return [line.get_ydata() for line in axis.lines if len(line.get_ydata()) > 2]


def test_draw_runs_shows_the_values_of_the_log(tmp_path):
    axes = panels(curves.draw_runs([write_run(tmp_path / "a")]))
    raw, _, val = curves_of(axes["train"])
    np.testing.assert_allclose(raw, 3.0 + 8 / (1 + np.arange(40)), atol=1e-6)
    np.testing.assert_allclose(val, 3.1 + 8 / (1 + np.arange(0, 41, 10)), atol=1e-6)
    np.testing.assert_allclose(curves_of(axes["hella"])[0], [0.25, 0.26, 0.27, 0.28, 0.29])
    assert "val 3.2951" in texts(axes["train"])
    assert set(axes) == {"train", "hella", "lr", "norm", "tok_per_sec"}


def test_draw_runs_omits_the_panel_of_an_evaluation_without_results(tmp_path):
    assert "hella" not in panels(curves.draw_runs([write_run(tmp_path / "a", streams=("train", "val"))]))


def test_panel_of_an_unknown_stream_follows_from_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "DIAGNOSTICS", (Panel("dt_ms", "time", curves.draw_stream, "{:.1f}"),))
    axes = panels(curves.draw_runs([write_run(tmp_path / "a")]))
    assert set(axes) == {"train", "hella", "lr", "norm", "tok_per_sec", "dt_ms"}
    assert "0.0010" in texts(axes["lr"])
    assert axes["dt_ms"].get_title() == "time (median 100.0)"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (EDU, True),
        (EDU | {"tokenizer": "byte"}, False),
        (EDU | {"source": "HuggingFaceFW/fineweb sample-10BT"}, False),
        ({"source": "shakespeare", "tokenizer": "gpt2"}, False),
    ],
)
def test_loss_reference_is_drawn_only_for_fineweb_edu_in_gpt2_tokens(tmp_path, data, shown):
    axis = panels(curves.draw_runs([write_run(tmp_path / "a", data=data)]))["train"]
    assert ("GPT-2 124M 3.2924" in texts(axis)) == shown
    assert any(np.allclose(line.get_ydata(), 3.2924) for line in axis.lines) == shown


@pytest.mark.parametrize(
    ("size", "data", "settings", "shown"),
    [
        ((12, 768), EDU, {}, {"GPT-2 124M 0.294", "GPT-3 124M 0.337"}),
        ((24, 1024), EDU, {}, {"GPT-2 350M 0.375", "GPT-3 350M 0.436"}),
        ((4, 192), EDU, {}, set()),
        ((12, 768), {"source": "stdlib", "tokenizer": "gpt2"}, {}, set()),
        ((12, 768), EDU | {"tokenizer": "byte"}, {}, set()),
        ((12, 768), EDU, {"hellaswag_limit": 100}, set()),
        ((12, 768), EDU, {"hellaswag_data": "other.jsonl"}, set()),
        ((12, 768), {}, {}, set()),
    ],
)
def test_hellaswag_references_are_drawn_only_for_comparable_runs(tmp_path, size, data, settings, shown):
    folder = write_run(tmp_path / "a", size=size, data=data, settings=settings)
    labels = set(texts(panels(curves.draw_runs([folder]))["hella"]))
    assert {label for label in labels if label.startswith("GPT")} == shown
    assert "chance 0.250" in labels


def test_loss_reference_is_not_drawn_for_a_model_of_another_size(tmp_path):
    axis = panels(curves.draw_runs([write_run(tmp_path / "a", size=(4, 192), data=EDU)]))["train"]
    assert not any("GPT-2" in label for label in texts(axis))


def test_several_runs_are_labelled_with_their_names_and_colours(tmp_path):
    folders = [write_run(tmp_path / parent / "run") for parent in ("a", "b")] + [write_run(tmp_path / "c")]
    axis = panels(curves.draw_runs(folders))["train"]
    named = {text.get_text().split(":")[0]: text.get_color() for text in axis.texts}
    assert set(named) == {"a/run", "b/run", "c"}
    assert len(set(named.values())) == 3
    assert {line.get_color() for line in axis.lines} == set(named.values())


def test_names_of_runs_are_cut_to_their_ends(tmp_path):
    folders = [tmp_path / ("x" * 100 + end) for end in ("_a", "_b")]
    assert curves.short_names(folders) == ["…" + "x" * 37 + end for end in ("_a", "_b")]


def test_labels_of_a_logarithmic_axis_are_beside_their_points():
    from matplotlib.figure import Figure

    axis = Figure().subplots()
    axis.set(yscale="log", ylim=(1, 10000))
    place_labels(axis, [Label(1.0, 100.0, "middle", "black"), Label(None, 1000.0, "upper", "black")])
    assert [text.xyann[1] for text in axis.texts] == pytest.approx([0.5, 0.75])


def test_spread_keeps_labels_apart_and_near_their_curves():
    wanted = [*sorted(np.random.default_rng(0).random(20)), 1.0, 1.0]
    heights = spread(wanted, 0.04)
    assert np.diff(heights).min() >= 0.04 - 1e-9
    assert spread([0.1, 0.5, 0.9], 0.04) == [0.1, 0.5, 0.9]
    np.testing.assert_allclose(spread([0.5, 0.5], 0.04), [0.48, 0.52])
    assert min(spread([0.0, 0.0, 0.0], 0.04)) == 0.0


def test_x_axis_counts_steps_tokens_or_hours(tmp_path):
    folder = write_run(tmp_path / "a", every=4)
    minutes = {"hours": 0.1 / 60}  # of one step, as the run is short; only every fourth step is logged
    for x, unit in ({"steps": 1.0, "tokens": 512.0} | minutes).items():
        axis = panels(curves.draw_runs([folder], x))["train"]
        assert axis.get_xlabel() == ("minutes of training" if x == "hours" else x)
        val = next(line for line in axis.lines if line.get_linestyle() == "--")
        np.testing.assert_allclose(val.get_xdata()[:4], unit * np.arange(0, 31, 10))


def test_x_axis_of_a_long_run_counts_hours(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "SHORT_RUNS_HOURS", 0.001)  # the run takes 4 seconds
    axis = panels(curves.draw_runs([write_run(tmp_path / "a")], "hours"))["train"]
    assert axis.get_xlabel() == "hours of training"


def test_learning_rates_to_come_are_drawn_dotted_from_the_last_logged_step(tmp_path):
    asked = []

    def plan(settings, step):
        asked.append((settings["max_lr"], step))
        return [39, 60, 80], [1e-3, -1e300, 0.0]  # the second is too large to be drawn

    axis = panels(curves.draw_runs([write_run(tmp_path / "a")], "tokens", plan))["lr"]
    assert asked == [(1e-3, 39)]
    _, dotted = axis.lines
    assert dotted.get_linestyle() == ":"
    np.testing.assert_array_equal(dotted.get_xdata(), [39 * 512, 60 * 512, 80 * 512])
    np.testing.assert_array_equal(dotted.get_ydata(), [1e-3, np.nan, 0.0])
    assert axis.get_title() == "learning rate (dotted: planned)"
    assert len(panels(curves.draw_runs([write_run(tmp_path / "b")], "hours", plan))["lr"].lines[1].get_xdata()) == 0


def test_title_of_several_runs_names_what_differs(tmp_path):
    folders = [write_run(tmp_path / str(i), settings={"max_lr": lr, "log_dir": i}) for i, lr in enumerate((1e-3, 2e-3))]
    assert curves.draw_runs(folders)._suptitle.get_text() == "2 runs · max_lr 0.001, 0.002"


def test_runs_with_different_tokenizers_share_the_panel_of_bits_per_byte(tmp_path):
    folders = [write_run(tmp_path / name, data={"tokenizer": name}) for name in ("byte", "gpt2")]
    title = curves.draw_runs(folders)._suptitle.get_text()
    assert "warning: tokenizers byte, gpt2" in title
    assert "bits per byte" not in title
    streams = ("train", "val", "val_bpb")
    folders = [write_run(tmp_path / "b" / name, data={"tokenizer": name}, streams=streams) for name in ("byte", "gpt2")]
    figure = curves.draw_runs(folders)
    assert figure._suptitle.get_text().endswith("; bits per byte do")
    axis = panels(figure)["val_bpb"]
    np.testing.assert_allclose(curves_of(axis)[0], (3.1 + 8 / (1 + np.arange(0, 41, 10))) / 3, atol=1e-6)
    assert axis.get_ylim()[1] < 1.5, "the untrained model, at 3.7, is left out of the axis"


def test_best_validation_is_ringed_and_its_step_named(tmp_path):
    folder = write_run(tmp_path / "a")
    with open(folder / "log.txt", "a", encoding="utf-8") as f:
        f.write("50 val 3.5\n60 val nan\n")
    axis = panels(curves.draw_runs([folder]))["train"]
    ring = next(line for line in axis.lines if line.get_marker() == "o" and line.get_fillstyle() == "none")
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (40, pytest.approx(3.1 + 8 / 41, abs=1e-6))
    assert "val 3.5000 (best 3.2951, step 40)" in texts(axis)


def test_loss_panel_says_where_a_cut_curve_begins(tmp_path):
    title = panels(curves.draw_runs([write_run(tmp_path / "a")]))["train"].get_title()
    assert title.endswith("cut at the top: training begins at 11.00")


def test_norm_is_smoothed_by_a_median(tmp_path):
    norm = np.ones(600)
    norm[300:303] = 1000.0
    positions, medians = curves.smooth_by_median(norm)
    assert (medians == 1.0).all()
    assert (positions[0], positions[-1]) == (0, 599)
    assert curves.smooth_by_median(np.array([]))[1].size == 0


@pytest.mark.parametrize("x", ["steps", "tokens", "hours"])
def test_ticks_do_not_touch(tmp_path, x):
    folder = write_run(tmp_path / "a", steps=12000, every=500, streams=("train", "val"))
    figure = curves.draw_runs([folder], x)
    figure.canvas.draw()
    for axis in panels(figure).values():
        boxes = [tick.get_window_extent() for tick in axis.get_xticklabels() if tick.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert all(a.x1 + 4 < b.x0 for a, b in itertools.pairwise(boxes)), axis.get_label()


def test_smooth_is_a_centred_mean_of_the_finite_values():
    line = np.arange(300.0)
    np.testing.assert_allclose(smooth(line)[:295], line[:295])
    line[50] = np.nan
    assert np.isfinite(smooth(line)).all()
    assert smooth(np.array([])).size == 0
    noise = np.random.default_rng(0).normal(size=600)
    expected = [noise[max(0, i - min(i, 10)) : i + min(i, 10) + 1].mean() for i in range(600)]
    np.testing.assert_allclose(smooth(noise), expected, atol=1e-12)


def test_plot_runs_accepts_nan_foreign_and_empty_logs(tmp_path):
    broken = write_run(tmp_path / "nan", nan=True)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "log.txt").write_text("0 val 10.9\n0 hella 0.2505\n0 train 10.95\n1 train 9.5\nnot a line\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "log.txt").write_text("")
    curves.plot_runs([broken, foreign, empty], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
