"""plot.py writes the PNG without importing torch, and reports mistakes in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

import plot
from tracking.runlog import RunLog


@pytest.fixture
def log_dir(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    log = RunLog(folder)
    for step in range(3):
        log.write(step, train=3.0 - step, dt_ms=100.0)
    log.close()
    return folder


def test_command_writes_a_png_without_importing_torch(log_dir):
    code = f"import sys, plot; plot.main(['{log_dir}', '--x=hours']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"wrote {log_dir}/plot.png\nFalse\n", done.stderr
    assert (log_dir / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_command_draws_runs_over_their_size_and_names_those_left_out(log_dir, tmp_path, capsys):
    run = tmp_path / "b"
    run.mkdir()
    (run / "log.txt").write_text("0 val 5.5\n10 val 2.0\n")
    record = {"config": {"max_steps": 10}, "model": {"non_embedding_parameters": 1000}}
    (run / "config.json").write_text(json.dumps(record))
    plot.main([str(run), str(log_dir), "--x=params"])
    reason = "left out a: no config.json with the settings of the run"
    assert capsys.readouterr().out == f"{reason}\nwrote {run}/scaling.png\n"
    assert (run / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert not (run / "plot.png").exists()


@pytest.mark.parametrize(
    "lines",
    [
        ["0 train 3.0", f"{2**63} train 2.0", "1 train 1.0"],
        ["0 val -inf", "0 train nan", "0 norm inf", "1 lr 1e308", "1 dt_ms 1e308", "2 dt_ms -1e308"],
        ["0 train 1e308", "1 train -1e308", "1 norm 1e300", "0 tok_per_sec 1e308", "0 hella 1e200", "0 other -1e308"],
        ["0 a$_$b 1.0", "1 train 2.0"],
    ],
)
@pytest.mark.parametrize("x", ["steps", "hours"])
def test_command_draws_logs_of_strange_values(tmp_path, lines, x):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/lr$_$1\xff"))
    folder.mkdir()
    (folder / "log.txt").write_text("\n".join([*lines, "3 dt_ms 10.0", ""]))
    plot.main([str(folder), f"--x={x}"])
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "record",
    [
        "[]",
        "3",
        '{"config": 3, "model": [], "data": null}',
        "[" * 10**5,
        '{"model": {"parameters": "many"}}',
        '{"model": {"a": 1}}',
        '{"config": {"max_lr": null}}',
        '{"data": {"source": 5}}',
        '{"environment": 1, "earlier_starts": 2}',
    ],
)
def test_command_draws_a_run_whose_record_has_other_types(log_dir, record):
    (log_dir / "config.json").write_text(record)
    plot.main([str(log_dir)])
    assert (log_dir / "plot.png").exists()


def test_command_says_what_a_log_holds_instead_of_values(tmp_path, capsys):
    for text, words in (
        ("", "is empty"),
        ("<!DOCTYPE html>\n", "begins with '<!DOCTYPE html>'"),
        ("s:0 tel:11.0\n", "s:0"),
    ):
        (tmp_path / "log.txt").write_text(text)
        with pytest.raises(SystemExit) as stop:
            plot.main([str(tmp_path)])
        assert stop.value.code == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "plot.png").exists()


def test_command_reports_mistakes_in_one_line(log_dir, tmp_path, capsys):
    mistakes = {
        (): "no LOG_DIR given",
        (tmp_path / "absent",): "holds no log.txt",
        (log_dir, "--x=tokens"): "no config.json",
        (log_dir, "--x=flops"): "no run can be drawn with --x flops: a: no config.json",
        (log_dir, log_dir): "given twice",
        (log_dir, f"--out={log_dir}/log.txt/x.png"): "Not a directory",
        (log_dir, f"--out={tmp_path}"): "expected the path of a file",
        (log_dir, "--out=/dev/full"): "/dev/full",
    }
    for arguments, words in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            plot.main([*map(str, arguments)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
