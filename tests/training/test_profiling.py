"""--profile records exactly one whole step."""

import gzip
import json
import re
from pathlib import Path

import pytest

from train_gpt2 import train


def profile(make_run, **settings):
    """(trace, name of its file) of a tiny run with --profile."""
    run = make_run(profile=True, **settings)
    train(run)
    (path,) = Path(run.cfg.log_dir).glob("trace_*")
    return json.loads(gzip.decompress(path.read_bytes())), path.name


def test_profile_trace_holds_one_step_and_its_table_adds_up(make_run, capsys):
    trace, name = profile(make_run, max_steps=8, n_layer=3, B=4)  # 512 tokens are 4 micro-steps of 4 x 32
    assert name == "trace_00005.json.gz"
    calls = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    assert calls.count("aten::gelu") == calls.count("aten::gelu_backward") == 3 * 4
    table = capsys.readouterr().out.split("one step: ")[1]
    total = float(re.match(r"([\d,.]+) ms", table)[1].replace(",", ""))
    times = re.findall(r" ([\d,.]+) +[\d.]+%$", table, re.MULTILINE)
    assert sum(float(ms.replace(",", "")) for ms in times) == pytest.approx(total, abs=0.1)
    assert "step    6 |" in table  # the run went on


def test_profile_of_a_short_run_is_of_its_last_step(make_run):
    assert profile(make_run, max_steps=2)[1] == "trace_00001.json.gz"
