"""Run by torchrun: in each shard mode train, then resume from the checkpoint in the middle, in one process group.

Then train until patience ends: at a learning rate of 0 no validation is better than the first.
"""

import shutil
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

from helpers import TINY, as_flags, write_corpus

from configurator import configure
from system import runtime
from system.signals import StopRequest
from train_gpt2 import train
from training.config import TrainConfig
from training.parallel import SHARD_MODES
from training.setup import set_up

SETTINGS = TINY | {"B": 2, "total_batch_size": 2 * 6 * 32, "max_steps": 4, "checkpoint_interval": 2, "keep_last": 0}


def main(folder):
    rt = runtime.start("cpu", "float32", timeout_s=60)
    rt.from_master(lambda: write_corpus(folder / "data"))
    for shard in SHARD_MODES:
        settings = SETTINGS | {"data_dir": folder / "data", "shard": shard}
        for name in ("whole", "resumed"):
            log_dir = folder / f"{shard}_{name}"
            if name == "resumed":
                rt.from_master(lambda log_dir=log_dir: start_from_the_middle(log_dir))
            cfg = configure(TrainConfig, as_flags(settings | {"log_dir": log_dir, "resume": True}))
            train(set_up(cfg, rt, StopRequest()))
    log_dir = folder / "patience"
    settings = SETTINGS | {"data_dir": folder / "data", "max_lr": 0.0, "min_lr": 0.0, "val_interval": 1, "patience": 2}
    train(set_up(configure(TrainConfig, as_flags(settings | {"log_dir": log_dir})), rt, StopRequest()))
    rt.close()


def start_from_the_middle(log_dir):
    log_dir.mkdir()
    whole = log_dir.with_name(log_dir.name.replace("resumed", "whole"))
    shutil.copy(whole / "model_00002.pt", log_dir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
