"""Train on several ranks, in each shard mode: losses and checkpoints equal those of one device, up to rounding."""

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, run_script, torchrun, write_corpus, write_hellaswag

from formats import checkpoint
from model import GPT, GPTConfig
from system.errors import UserError
from tracking import heat_map
from tracking.runlog import read_log
from training.config import TrainConfig

SETTINGS = TINY | {
    "B": 2,
    "total_batch_size": 2 * 6 * 32,  # for 1, 2 and 3 ranks
    "block_size": 33,  # a size that the ranks do not divide
    "max_steps": 4,
    "checkpoint_interval": 2,
    "keep_last": 0,
    "val_tokens": 992,
    "weight_decay": 0.5,
    "grad_clip": 0.3,
    "hellaswag_interval": 2,
    "sample_interval": 2,
    "num_samples": 1,
    "sample_tokens": 6,
    "sample_prompt": "?",  # short enough for the context
    "watch": True,
}
MODES = ("none", "optimizer", "full")


def run_training(ranks, settings):
    """Train on `ranks` ranks to the end; returns what was printed."""
    flags = as_flags(settings)
    done = run_script("train_gpt2.py", *flags) if ranks == 1 else torchrun(ranks, "train_gpt2.py", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """`SETTINGS` with data."""
    folder = tmp_path_factory.mktemp("data")
    hellaswag = write_hellaswag(folder / "hellaswag.jsonl")
    data = write_corpus(folder / "data", masked=True)  # so that the ranks' batches have different numbers of targets
    return SETTINGS | {"data_dir": data, "hellaswag_data": hellaswag}


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """({mode: log_dir}, {mode: output}) of the same run on two ranks in each shard mode; "one" is one device."""
    folder = tmp_path_factory.mktemp("shard")
    log_dirs = {mode: folder / mode for mode in ("one", *MODES)}
    outputs = {"one": run_training(1, settings | {"log_dir": log_dirs["one"]})}
    for mode in MODES:
        outputs[mode] = run_training(2, settings | {"log_dir": log_dirs[mode], "shard": mode})
    return log_dirs, outputs


def assert_same_state(ours, expected, tolerance=2e-5):
    """Check that two checkpoints hold the same tensors, up to rounding, under the same names and in the same shapes."""
    assert ours["model"].keys() == expected["model"].keys()
    for name, weight in expected["model"].items():
        torch.testing.assert_close(ours["model"][name], weight, rtol=1e-4, atol=tolerance, msg=name)
    for a, b in zip(ours["optimizer"], expected["optimizer"], strict=True):
        assert a["state"].keys() == b["state"].keys()
        assert [group["params"] for group in a["param_groups"]] == [group["params"] for group in b["param_groups"]]
        for key, values in b["state"].items():
            assert a["state"][key].keys() == values.keys()
            for name, value in values.items():
                torch.testing.assert_close(a["state"][key][name], value, rtol=1e-4, atol=tolerance, msg=f"{key} {name}")


@pytest.mark.parametrize("mode", MODES)
def test_shard_gives_the_losses_norms_scores_and_samples_of_one_device(runs, mode):
    log_dirs, outputs = runs
    logs = [read_log(log_dirs[name]) for name in (mode, "one")]
    for stream in ("train", "norm", "val", "val_bpb", "lr"):
        np.testing.assert_array_equal(logs[0][stream].steps, logs[1][stream].steps)
        np.testing.assert_allclose(logs[0][stream].values, logs[1][stream].values, atol=2e-5, err_msg=stream)
    watched = [stream for stream in logs[1] if stream.startswith(heat_map.PREFIXES)]
    assert len(watched) == 2 * (3 + 2 * 3)
    for stream in watched:
        np.testing.assert_allclose(logs[0][stream].values, logs[1][stream].values, rtol=1e-2, err_msg=stream)
    assert logs[0]["norm"].values.max() > SETTINGS["grad_clip"], "the run must clip at least once"
    assert logs[0]["hella"].values.tolist() == logs[1]["hella"].values.tolist()
    assert outputs[mode].count("step    3 |") == 1, "only the master prints"
    samples = [[line for line in outputs[name].splitlines() if "[Sample" in line] for name in (mode, "one")]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 2  # at steps 2 and 4


@pytest.mark.parametrize("mode", MODES)
def test_shard_writes_the_checkpoint_of_one_device(runs, mode):
    ours, expected = (checkpoint.load(runs[0][name] / "model_00004.pt") for name in (mode, "one"))
    assert_same_state(ours, expected)
    tied = [ours["model"][name].data_ptr() for name in ("lm_head.weight", "transformer.wte.weight")]
    assert tied[0] == tied[1], "the tied tensor is stored once"
    GPT(GPTConfig(**ours["model_config"])).load_state_dict(ours["model"])


@pytest.mark.parametrize(
    ("before", "after", "ranks"),
    [("optimizer", "full", 3), ("full", "none", 1)],
)
def test_shard_resumes_in_any_mode_and_on_any_number_of_ranks(settings, runs, tmp_path, before, after, ranks):
    log_dirs, _ = runs
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "model_00002.pt").write_bytes((log_dirs[before] / "model_00002.pt").read_bytes())
    output = run_training(ranks, settings | {"log_dir": tmp_path / "log", "shard": after, "resume": True})
    assert "resuming from" in output
    ours, expected = (checkpoint.load(folder / "model_00004.pt") for folder in (tmp_path / "log", log_dirs["one"]))
    assert_same_state(ours, expected)


def test_shard_optimizer_with_muon_trains_as_one_device(settings, tmp_path):
    settings = settings | {"optimizer": "muon", "adamw_lr_scale": 2.0, "sample_interval": 0, "hellaswag_interval": 0}
    run_training(1, settings | {"log_dir": tmp_path / "one"})
    run_training(2, settings | {"log_dir": tmp_path / "two", "shard": "optimizer"})
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    np.testing.assert_allclose(logs[1]["train"].values, logs[0]["train"].values, atol=2e-5)
    states = [checkpoint.load(tmp_path / name / "model_00004.pt") for name in ("one", "two")]
    assert_same_state(states[1], states[0])


def test_shard_full_refuses_muon():
    with pytest.raises(UserError, match="muon needs whole matrices, and shard = full divides them: use shard = opti"):
        TrainConfig(optimizer="muon", shard="full").check()
