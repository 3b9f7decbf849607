"""Fixtures: the device that tests compute on, a tiny corpus and a tiny training run.

python -m pytest --device cuda      # the tests of model, training and inference on a GPU, and those marked `cuda`
python -m pytest -m slow            # the tests that compile or drive a browser, which a GPU always runs
"""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: faster for tiny models, and tests run side by side
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA: for deterministic products

import pytest
import torch
from helpers import TINY, as_flags, write_corpus

from configurator import configure
from system import runtime
from system.errors import UserError
from system.signals import StopRequest
from training import evaluation
from training.config import TrainConfig
from training.setup import set_up

DEVICES = ("cpu", "cuda", "mps")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", choices=DEVICES, help="where model, training and inference run")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    if config.option.device != "cpu":
        config.option.numprocesses = 0  # one process: some tests measure the memory of the GPU


def pytest_configure(config):
    try:
        runtime.pick_device(config.option.device)
    except UserError as error:
        pytest.exit(f"error: {error}", returncode=2)


def pytest_collection_modifyitems(config, items):
    device = config.option.device
    for item in items:
        for marker in ("cpu", "cuda"):
            if item.get_closest_marker(marker) and device != marker:
                item.add_marker(pytest.mark.skip(f"needs --device {marker}"))
        if item.get_closest_marker("slow") and device != "cuda" and "slow" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip("needs -m slow"))


@pytest.fixture(scope="session")
def device(request):
    """The device of `--device`."""
    return torch.device(request.config.option.device)


@pytest.fixture(scope="session")
def rt(device):
    """A float32 runtime on the device."""
    return runtime.Runtime(device, torch.float32)


@pytest.fixture
def on_device(device):
    """New tensors of the test are on the device."""
    if device.type == "cpu":
        yield
    else:
        with device:
            yield


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "data")


@pytest.fixture
def empty_plots(monkeypatch):
    """Runs write an empty plot.png: drawing it takes longer than training a tiny model."""
    monkeypatch.setattr(evaluation, "plot_runs", lambda log_dirs, out, **plan: Path(out).write_bytes(b""))


@pytest.fixture
def make_run(corpus, tmp_path, device):
    """A function that sets up a tiny run on the device, uncompiled; settings given to it override `TINY`."""
    on_device = {"device": device.type, "compile": False, "deterministic": device.type == "cuda"}

    def make(**settings):
        settings = TINY | on_device | {"data_dir": corpus, "log_dir": tmp_path / "log", "overwrite": True} | settings
        if settings.get("resume"):
            settings["overwrite"] = False
        cfg = configure(TrainConfig, as_flags(settings))
        rt = runtime.start(cfg.device, cfg.dtype, cfg.seed, deterministic=cfg.deterministic)
        return set_up(cfg, rt, StopRequest())

    return make
