"""The heat maps show the values of the watched streams, one row a part, and other plots leave these streams out."""

import numpy as np
import pytest

import plot
from tracking import curves, heat_map
from tracking.runlog import RunLog, read_log

PARTS = ["wte", "h.0.ln", "h.0.attn", "h.1.ln", "h.1.attn", "ln_f"]


def write_run(folder, steps=range(10), parts=PARTS):
    """Write a log in which the value of row i of `parts` at step s is (i + 1)·1.1^s, and a hundredth in updates."""
    folder.mkdir()
    log = RunLog(folder)
    for step in steps:
        values = {part: (i + 1) * 1.1**step for i, part in enumerate(parts)}
        log.write(step, **{"grad/" + part: value for part, value in values.items()}, train=1.0)
        log.write(step, **{"update/" + part: value / 100 for part, value in values.items()})
    log.close()
    return folder


def meshes(figure):
    """Return the values of the heat maps, each (rows, columns), and the labels of their rows."""
    values = [np.ma.filled(axis.collections[0].get_array(), np.nan) for axis in figure.axes[:2]]
    return values, [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_heat_maps_show_each_part_in_order(tmp_path):
    log = read_log(write_run(tmp_path / "a"))
    (gradients, updates), labels = meshes(heat_map.draw_watch(log, "a"))
    assert labels == ["wte", "ln 0", "ln 1", "attn 0", "attn 1", "ln_f"]
    expected = np.array([1, 2, 4, 3, 5, 6])[:, None] * 1.1 ** np.arange(10)
    np.testing.assert_allclose(gradients, expected, rtol=1e-3)
    np.testing.assert_allclose(updates, expected / 100, rtol=1e-3)


def test_heat_map_columns_are_geometric_means_and_gaps(monkeypatch, tmp_path):
    monkeypatch.setattr(heat_map, "MOST_COLUMNS", 5)
    log = read_log(write_run(tmp_path / "a", [*range(4), *range(6, 10)]))
    edges, values = heat_map.columns_of(log, ["grad/wte", "grad/absent"])
    assert edges.tolist() == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(values[0], [1.1**0.5, 1.1**2.5, np.nan, 1.1**6.5, 1.1**8.5], rtol=1e-3)
    assert np.isnan(values[1]).all()


def test_heat_map_of_a_deep_model_labels_some_layers(tmp_path):
    parts = [f"h.{i}.{part}" for i in range(48) for part in ("ln", "attn", "mlp")]
    _, labels = meshes(heat_map.draw_watch(read_log(write_run(tmp_path / "a", range(2), parts)), "a"))
    assert labels[:3] == ["ln 0", "ln 3", "ln 6"]
    assert len(labels) == 48


def test_plot_writes_heat_maps_and_no_panels_of_watched_streams(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    plot.main([str(folder)])
    assert capsys.readouterr().out.splitlines() == [f"wrote {folder}/plot.png", f"wrote {folder}/watch.png"]
    assert (folder / "watch.png").read_bytes().startswith(b"\x89PNG")
    assert curves.evaluation_panels(set(read_log(folder))) == []
    plot.main([str(folder), f"--out={tmp_path}/x.png"])
    assert (tmp_path / "x.watch.png").exists()


@pytest.mark.parametrize(
    "lines",
    [
        ["0 grad/wte nan", "1 grad/wte inf", "2 grad/wte 0"],
        ["5 update/h.x.attn 1e300", "5 update/ -3", "5 grad// 1e-300"],
        ["0 grad/h.0.attn 1", "1000000000 grad/h.0.attn 1"],
    ],
)
def test_plot_draws_watched_streams_of_strange_values(tmp_path, lines):
    (tmp_path / "log.txt").write_text("\n".join([*lines, "0 train 1.0", ""]))
    plot.main([str(tmp_path)])
    assert (tmp_path / "watch.png").exists()
