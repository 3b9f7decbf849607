"""However ranks share a model, it trains the same, and its checkpoints are those of one device."""

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, run_script, torchrun, write_corpus

from formats import checkpoint
from model import GPT, GPTConfig
from tracking.runlog import read_log

SETTINGS = TINY | {"max_steps": 4, "checkpoint_interval": 2, "keep_last": 0, "val_tokens": 992}
SETTINGS |= {"B": 2, "total_batch_size": 2 * 6 * 32, "block_size": 33}  # for 1, 2 and 3 ranks; odd sizes to divide
SETTINGS |= {"weight_decay": 0.5, "grad_clip": 0.3, "sample_interval": 2, "num_samples": 1, "sample_tokens": 6}
KINDS = ("none", "optimizer", "full")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(corpus, {kind: log_dir}, {kind: output}) of one run, shared in each way by two ranks; "one" is one device."""
    folder = tmp_path_factory.mktemp("shard")
    corpus, log_dirs, outputs = write_corpus(folder / "data"), {}, {}
    for kind in ("one", *KINDS):
        log_dirs[kind] = folder / kind
        flags = as_flags(SETTINGS | {"data_dir": corpus, "log_dir": log_dirs[kind]})
        if kind == "one":
            done = run_script("train_gpt2.py", *flags)
        else:
            done = torchrun(2, "train_gpt2.py", *flags, f"--shard={kind}")
        assert done.returncode == 0, done.stderr
        outputs[kind] = done.stdout
    return corpus, log_dirs, outputs


def assert_same_state(ours, expected, tolerance=2e-5):
    """Two checkpoints hold the same tensors under the same names, in the same form."""
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


@pytest.mark.parametrize("kind", KINDS)
def test_losses_norms_and_samples_are_those_of_one_device(runs, kind):
    _, log_dirs, outputs = runs
    logs = [read_log(log_dirs[name]) for name in (kind, "one")]
    for stream in ("train", "norm", "val", "lr"):
        np.testing.assert_array_equal(logs[0][stream].steps, logs[1][stream].steps)
        np.testing.assert_allclose(logs[0][stream].values, logs[1][stream].values, atol=2e-5, err_msg=stream)
    assert logs[0]["norm"].values.max() > SETTINGS["grad_clip"], "or clipping would not be tried"
    samples = [[line for line in outputs[name].splitlines() if "[Sample" in line] for name in (kind, "one")]
    assert samples[0] == samples[1]
    assert len(samples[0]) == 2  # at steps 2 and 4


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_are_those_of_one_device(runs, kind):
    ours, expected = (checkpoint.load(runs[1][name] / "model_00004.pt") for name in (kind, "one"))
    assert_same_state(ours, expected)
    tied = [ours["model"][name].data_ptr() for name in ("lm_head.weight", "transformer.wte.weight")]
    assert tied[0] == tied[1], "the tied tensor is stored once"
    GPT(GPTConfig(**ours["model_config"])).load_state_dict(ours["model"])


@pytest.mark.parametrize(
    ("before", "after", "ranks"), [("full", "optimizer", 2), ("optimizer", "full", 3), ("full", "none", 1)]
)
def test_a_run_goes_on_with_any_sharing_and_any_number_of_ranks(runs, tmp_path, before, after, ranks):
    corpus, log_dirs, _ = runs
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "model_00002.pt").write_bytes((log_dirs[before] / "model_00002.pt").read_bytes())
    settings = SETTINGS | {"data_dir": corpus, "log_dir": tmp_path / "log", "shard": after, "resume": True}
    done = torchrun(ranks, "train_gpt2.py", *as_flags(settings))
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    ours, expected = (checkpoint.load(folder / "model_00004.pt") for folder in (tmp_path / "log", log_dirs["one"]))
    assert_same_state(ours, expected)


def test_muon_shares_its_state_or_says_that_it_cannot(runs, tmp_path):
    settings = SETTINGS | {"data_dir": runs[0], "optimizer": "muon", "sample_interval": 0}
    two = torchrun(2, "train_gpt2.py", *as_flags(settings | {"log_dir": tmp_path / "two", "shard": "optimizer"}))
    one = run_script("train_gpt2.py", *as_flags(settings | {"log_dir": tmp_path / "one"}))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    np.testing.assert_allclose(logs[1]["train"].values, logs[0]["train"].values, atol=2e-4)
    states = [checkpoint.load(tmp_path / name / "model_00004.pt") for name in ("one", "two")]
    assert_same_state(states[1], states[0], tolerance=1e-2)  # muon orthogonalizes in bfloat16: rounding grows
    refused = run_script("train_gpt2.py", *as_flags(settings | {"shard": "full"}))
    assert refused.returncode == 2
    assert (
        refused.stderr
        == "error: optimizer = muon needs whole matrices, and shard = full divides them: use shard = optimizer\n"
    )
