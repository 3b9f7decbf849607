"""plot.py writes the PNG without importing torch, and reports mistakes in one line."""

import subprocess
import sys

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


def test_command_reports_mistakes_in_one_line(log_dir, tmp_path, capsys):
    mistakes = {
        (): "no LOG_DIR given",
        (tmp_path / "absent",): "holds no log.txt",
        (log_dir, "--x=tokens"): "no config.json",
        (log_dir, log_dir): "given twice",
    }
    for arguments, words in mistakes.items():
        with pytest.raises(SystemExit) as stop:
            plot.main([*map(str, arguments)])
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
