"""Fixtures: a tiny corpus and a tiny training run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: faster for tiny models, and tests run side by side

import pytest
from helpers import TINY, as_flags, write_corpus

from configurator import configure
from system import runtime
from system.signals import StopRequest
from train_gpt2 import Trainer
from training.config import TrainConfig


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "data")


@pytest.fixture
def make_trainer(corpus, tmp_path):
    """A function that sets up a tiny run on the CPU, with whatever settings differ from `TINY`."""

    def make(**settings):
        settings = TINY | {"data_dir": corpus, "log_dir": tmp_path / "log", "overwrite": True} | settings
        if settings.get("resume"):
            settings["overwrite"] = False
        cfg = configure(TrainConfig, as_flags(settings))
        rt = runtime.start(cfg.device, cfg.dtype, cfg.seed)
        cfg.check_batch(rt.world_size)
        return Trainer(cfg, rt, StopRequest())

    return make
