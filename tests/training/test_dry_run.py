"""A dry run prints what a run would need and changes nothing."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, run_script

from configurator import configure
from model import GPTConfig
from training import costs
from training.config import TrainConfig
from training.dry_run import plan_lines


def plan_text(*argv, world_size=1):
    return "\n".join(plan_lines(configure(TrainConfig, argv), world_size))


def test_plan_of_gpt2_124M_equals_a_calculation_by_hand():
    text = plan_text("--price_per_hour=2.5", "--assumed_mfu=0.5", "--data_dir=absent")
    tokens = 19073 * 2**19
    flops = tokens * (6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024)
    hours = flops / (989e12 * 0.5) / 3600
    assert "124,439,808 parameters" in text
    assert f"tokens: {tokens:,} in 19,073 steps of 524,288" in text
    assert f"FLOPs: {flops:.3g}" in text
    found = re.search(r"H100 +1 GPU +([\d.]+) h +8 GPUs +([\d.]+) h +cost +([\d.]+)", text).groups()
    np.testing.assert_allclose([float(x) for x in found], [hours, hours / 8, hours * 2.5], atol=0.006)
    assert "epochs: unknown, because absent/meta.json" in text
    assert all(f"  {name} " in text for name in costs.GPU_PEAKS)


def test_plan_counts_the_windows_that_training_would_use(corpus, make_run):
    run = make_run()
    text = plan_text(*as_flags(TINY | {"data_dir": corpus}))
    windows = len(run.loader.windows)
    assert f"epochs: {5 * 512 / (windows * 32):.2f} of the {windows:,} windows of 32 tokens" in text
    assert f"model: {costs.count_params(run.model.config):,} parameters" in text, "the data's vocabulary"


def test_plan_counts_the_ranks_of_torchrun():
    assert "B 64 x T 1024 x 8 ranks x grad_accum_steps 1 " in plan_text(world_size=8)


def test_shard_memory_divides_what_the_ranks_share():
    config = GPTConfig(n_layer=48, n_head=25, n_embd=1600)
    whole = costs.memory(config, TrainConfig(), 1, torch.bfloat16)
    for shard, divided in (("none", ()), ("optimizer", ("optimizer",)), ("full", ("optimizer", "gradients"))):
        parts = costs.shard_memory(whole, config, shard, 8, accumulates=False)
        for name in ("gradients", "optimizer", "activations", "logits"):
            assert getattr(parts, name) == getattr(whole, name) // (8 if name in divided else 1), (shard, name)
    gathered = 4 * (50304 + 1024) * 1600 + 4 * 2 * (12 * 1600**2 + 13 * 1600)  # embeddings, two blocks
    assert parts.parameters == whole.parameters // 8 + gathered
    assert costs.shard_memory(whole, config, "full", 8, accumulates=True).gradients == whole.gradients, (
        "they gather until they are sent"
    )
    assert costs.shard_memory(whole, config, "full", 1, accumulates=True) == whole
    text = plan_text("--shard=full", world_size=8)
    assert f"optimizer {costs.memory(GPTConfig(), TrainConfig(), 64, torch.bfloat16).optimizer / 8e9:.2f}" in text


@pytest.mark.parametrize("name", ["gpt2-medium", "gpt2-xl"])
def test_plan_of_a_pretrained_size_needs_no_download(name):
    expected = {"gpt2-medium": "354,823,168", "gpt2-xl": "1,557,611,200"}
    assert f"model: {expected[name]} parameters" in plan_text(f"--init_from={name}")


def test_plan_reads_the_shape_of_a_model_file_and_no_tensors(tmp_path):
    """The folder has no tensors at all."""
    config = {"n_positions": 2048, "vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"model: {124_439_808 + 1024 * 768:,} parameters" in plan_text(f"--init_from={tmp_path}")


def test_dry_run_writes_nothing(tmp_path):
    done = run_script("train_gpt2.py", "--dry_run", "--log_dir=log", "--data_dir=absent", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dry run: ")
    assert list(tmp_path.iterdir()) == []
    wrong = run_script("train_gpt2.py", "--dry_run", "--total_batch_size=1000", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: total_batch_size = 1000 is not a multiple")


def test_plan_for_B_auto_shows_the_memory_of_each_B():
    lines = [line for line in plan_text("--B=auto", world_size=8).splitlines() if line.startswith("memory: ")]
    assert [int(re.search(r" B (\d+) ", line)[1]) for line in lines] == [64, 32, 16, 8, 4, 2, 1]
