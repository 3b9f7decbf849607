"""TensorBoard and wandb get the streams of the log, and are needed only if enabled."""

import json
import runpy
import sys

import pytest

from configurator import configure
from system.errors import UserError
from tracking import sinks
from tracking.runlog import RunLog, read_log
from training.config import TrainConfig

WANDB = """
import json
class Error(Exception): pass
class Run:
    def __init__(self, settings):
        self.file = open(settings["dir"] + "/calls.txt", "a", buffering=1)
        self.record(settings)
    def record(self, value): print(json.dumps(value), file=self.file)
    def log(self, values, step): self.record([step, values])
def init(**settings): return Run(settings)
"""


def test_tensorboard_gets_the_streams_of_the_log_and_each_step_once_after_a_resume(tmp_path):
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


def test_wandb_gets_the_streams_of_the_log_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path)
    cfg = configure(TrainConfig, [f"--log_dir={tmp_path}", "--wandb"])
    for start in (0, 1, 0):
        RunLog(tmp_path, start, sinks.open_sinks(cfg, start)).write(start, train=1.5, norm=float("inf"))
    lines = [json.loads(line) for line in (tmp_path / "calls.txt").read_text().splitlines()]
    first, resumed, restarted = lines[::2]
    assert first["id"] == resumed["id"]
    assert first["id"] != restarted["id"]
    assert first["config"]["max_lr"] == cfg.max_lr
    assert lines[1::2] == [[0, {"train": 1.5}], [1, {"train": 1.5}], [0, {"train": 1.5}]]


def test_missing_package_is_reported_when_the_settings_are_read(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()  # a folder with that name is not the package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # without one that is installed
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(UserError, match=r"--wandb: the package is not installed; pip install wandb==\d"):
        configure(TrainConfig, ["--wandb"])
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--tensorboard: the package is not installed; pip install tensorboard==\d"):
        configure(TrainConfig, ["--tensorboard"])


def test_sinks_are_not_imported_unless_enabled(tmp_path, monkeypatch):
    for package in ("tensorboard", "torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)  # an import of it raises ImportError
    module = runpy.run_path(sinks.__file__)
    assert module["open_sinks"](TrainConfig(log_dir=str(tmp_path)), 0) == []
    with pytest.raises(ImportError):
        module["open_sinks"](TrainConfig(log_dir=str(tmp_path), tensorboard=True), 0)
