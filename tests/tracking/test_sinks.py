"""The log elsewhere: TensorBoard and wandb get the same streams, and are needed only when asked for."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT, TINY, as_flags

from configurator import configure
from system.errors import UserError
from tracking import sinks
from tracking.environment import git_commit
from tracking.runlog import RunLog, read_log
from training.config import TrainConfig

WANDB = """
import json
class Error(Exception): pass
class Run:
    def __init__(self, settings):
        self.file = open(settings["dir"] + "/calls.txt", "a", buffering=1)
        self.tell(settings)
    def tell(self, value): print(json.dumps(value), file=self.file)
    def log(self, values, step): self.tell([step, values])
def init(**settings): return Run(settings)
"""


def test_tensorboard_gets_the_logs_streams_and_no_step_twice_after_a_resume(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for start in (0, 4):
        log = RunLog(tmp_path, start, [sinks.TensorBoard(tmp_path, start)])
        for step in range(start, start + 6):
            log.write(step, train=float(10 * start + step), lr=1e-3)
            log.write(step, val=2.0)
        log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    streams = read_log(tmp_path)
    assert set(events.Tags()["scalars"]) == set(streams) == {"train", "lr", "val"}
    for name, (steps, values) in streams.items():
        assert [event.step for event in events.Scalars(name)] == steps.tolist()
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values.tolist())


def test_wandb_gets_the_logs_streams_and_a_resumed_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = configure(TrainConfig, [f"--log_dir={tmp_path}", "--wandb"])
    for start in (0, 1, 0):
        RunLog(tmp_path, start, sinks.open_sinks(cfg, start)).write(start, train=1.5, norm=float("inf"))
    lines = [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]
    first, resumed, anew = lines[::2]
    assert first["id"] == resumed["id"] != anew["id"]
    assert first["config"]["max_lr"] == cfg.max_lr
    assert lines[1::2] == [[0, {"train": 1.5}], [1, {"train": 1.5}], [0, {"train": 1.5}]]


def test_an_absent_package_is_named_before_anything_happens(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # a folder of that name is not the package
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match="--wandb: the package is not installed; pip install wandb"):
        configure(TrainConfig, ["--wandb"])
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--tensorboard: the package is not installed"):
        configure(TrainConfig, ["--tensorboard"])


def test_neither_is_imported_unasked(corpus, tmp_path):
    flags = as_flags(TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "max_steps": 1})
    code = f"import sys, train_gpt2; train_gpt2.main({flags!r}); print({{'tensorboard', 'wandb'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_run_says_what_it_ran_on_also_after_a_resume(make_trainer, tmp_path):
    make_trainer(max_steps=2).run()
    first = json.loads((tmp_path / "log" / "config.json").read_text())
    assert first["data"]["source"] == "a test"
    assert first["data"]["tokenizer"] == "byte"
    assert first["model"]["parameters"] == sum(p.numel() for p in make_trainer().raw_model.parameters()) - 127 * 32
    assert first["environment"]["torch"]
    assert first["environment"]["world_size"] == 1
    assert first["earlier_starts"] == []


def test_a_resumed_run_keeps_what_its_earlier_starts_ran_on(make_trainer, tmp_path):
    for steps in (2, 4, 6):
        make_trainer(max_steps=steps, resume=steps > 2).run()
    record = json.loads((tmp_path / "log" / "config.json").read_text())
    assert record["environment"]["from_step"] == 4
    assert [earlier["from_step"] for earlier in record["earlier_starts"]] == [0, 2]
    assert record["config"]["max_steps"] == 6


def test_the_commit_is_that_of_this_code_alone(tmp_path):
    def git(*args):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *identity, *args], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    assert git_commit(tmp_path) is None
    git("init", "--quiet")
    (tmp_path / "code.py").write_text("1\n")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    head = git("rev-parse", "HEAD").strip()
    assert git_commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2\n")
    assert git_commit(tmp_path) == head + "+changes"
    (tmp_path / "copy").mkdir()
    assert git_commit(tmp_path / "copy") is None
