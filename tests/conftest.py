"""Fixtures: a tiny corpus and a tiny training run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: faster for tiny models, and tests run side by side

import pytest
from helpers import TINY, as_flags, write_corpus

from configurator import configure
from system import runtime
from system.signals import StopRequest
from training.config import TrainConfig
from training.setup import set_up


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "data")


@pytest.fixture
def make_run(corpus, tmp_path):
    """A function that sets up a tiny run on the CPU; settings given to it override `TINY`."""

    def make(**settings):
        settings = TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "overwrite": True} | settings
        if settings.get("resume"):
            settings["overwrite"] = False
        cfg = configure(TrainConfig, as_flags(settings))
        return set_up(cfg, runtime.start(cfg.device, cfg.dtype, cfg.seed), StopRequest())

    return make
