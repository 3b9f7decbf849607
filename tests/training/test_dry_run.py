"""A dry run tells what a run would take and touches nothing; `--B auto` finds the largest B that fits."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, as_flags, run_script

from configurator import configure
from model import GPT, GPTConfig
from system import runtime
from system.errors import UserError
from tracking.runlog import read_log
from training import costs, micro_batch
from training.config import TrainConfig
from training.dry_run import plan_lines


def plan_text(*argv, world_size=1):
    return "\n".join(plan_lines(configure(TrainConfig, argv), world_size))


def test_the_plan_of_gpt2_124M_is_what_one_reckons_by_hand():
    text = plan_text("--price_per_hour=2.5", "--assumed_mfu=0.5", "--data_dir=absent")
    tokens = 19073 * 2**19
    flops = tokens * (6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024)
    hours = flops / (989e12 * 0.5) / 3600
    assert "124,439,808 parameters" in text
    assert f"tokens: {tokens:,} in 19,073 steps of 524,288" in text
    assert f"FLOPs: {flops:.3g}" in text
    found = re.search(r"H100 +1 GPU +([\d.]+) h +8 GPUs +([\d.]+) h +cost +([\d.]+)", text).groups()
    np.testing.assert_allclose([float(x) for x in found], [hours, hours / 8, hours * 2.5], atol=0.006)
    assert "epochs: unknown, as absent/meta.json" in text
    assert all(f"  {name} " in text for name in costs.GPU_PEAKS)


def test_epochs_are_of_the_windows_that_training_would_see(corpus, make_trainer):
    trainer = make_trainer()
    text = plan_text(*as_flags(TINY | {"data_dir": corpus}))
    windows = len(trainer.loader.windows)
    assert f"epochs: {5 * 512 / (windows * 32):.2f} of the {windows:,} windows of 32 tokens" in text
    assert f"model: {costs.count_params(trainer.raw_model.config):,} parameters" in text, "the data's vocabulary"


def test_a_plan_counts_torchruns_ranks():
    assert "B 64 x T 1024 x 8 ranks x grad_accum_steps 1 " in plan_text(world_size=8)


def test_what_ranks_share_is_divided_by_their_number():
    config = GPTConfig(n_layer=48, n_head=25, n_embd=1600)
    whole = costs.memory(config, 1, 1024, torch.bfloat16)
    for shard, divided in (("none", ()), ("optimizer", ("optimizer",)), ("full", ("optimizer", "gradients"))):
        parts = costs.sharded(whole, config, shard, 8, accumulates=False)
        for name in ("gradients", "optimizer", "activations", "logits"):
            assert getattr(parts, name) == getattr(whole, name) // (8 if name in divided else 1), (shard, name)
    gathered = 4 * (50304 + 1024) * 1600 + 4 * 2 * (12 * 1600**2 + 13 * 1600)  # embeddings, two blocks
    assert parts.parameters == whole.parameters // 8 + gathered
    assert costs.sharded(whole, config, "full", 8).gradients == whole.gradients, "they gather until they are sent"
    assert costs.sharded(whole, config, "full", 1) == whole
    text = plan_text("--shard=full", world_size=8)
    assert f"optimizer {costs.memory(GPTConfig(), 64, 1024, torch.bfloat16).optimizer / 8e9:.2f}" in text


@pytest.mark.parametrize("name", ["gpt2-medium", "gpt2-xl"])
def test_pretrained_sizes_are_planned_without_a_download(name):
    expected = {"gpt2-medium": "354,823,168", "gpt2-xl": "1,557,611,200"}
    assert f"model: {expected[name]} parameters" in plan_text(f"--init_from={name}")


def test_plan_reads_the_shape_of_a_model_file_and_no_tensors(tmp_path):
    """The folder has no tensors at all."""
    config = {"n_positions": 2048, "vocab_size": 50257, "n_layer": 12, "n_head": 12, "n_embd": 768}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert f"model: {124_439_808 + 1024 * 768:,} parameters" in plan_text(f"--init_from={tmp_path}")


def test_a_dry_run_leaves_no_trace(tmp_path):
    done = run_script("train_gpt2.py", "--dry_run", "--log_dir=log", "--data_dir=absent", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dry run: ")
    assert list(tmp_path.iterdir()) == []
    wrong = run_script("train_gpt2.py", "--dry_run", "--total_batch_size=1000", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: total_batch_size = 1000 is not a multiple")


def test_a_plan_for_B_auto_shows_what_each_B_would_take():
    lines = [line for line in plan_text("--B=auto", world_size=8).splitlines() if line.startswith("memory: ")]
    assert [int(re.search(r" B (\d+) ", line)[1]) for line in lines] == [64, 32, 16, 8, 4, 2, 1]


def memory_of(B):
    config = GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
    return costs.memory(config, B, 32, torch.float32, device_type="cpu").total


@pytest.mark.parametrize(("total", "free_for", "expected"), [(768, 24, 8), (768, 7, 4), (768, 8, 8), (512, 99, 16)])
def test_B_auto_is_the_largest_power_of_two_that_fits_and_divides(make_trainer, monkeypatch, total, free_for, expected):
    free = (memory_of(free_for) + 1) / (1 - micro_batch.MARGIN)
    monkeypatch.setattr(micro_batch, "available_memory", lambda: free)
    trainer = make_trainer(B="auto", total_batch_size=total, max_steps=2)
    assert trainer.cfg.B == trainer.loader.B == expected
    assert trainer.loader.B * trainer.loader.grad_accum_steps * 32 == total


def test_B_auto_trains_as_the_number_does(make_trainer, tmp_path, monkeypatch):
    losses = []
    for B in ("auto", 4):
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory_of(5) / (1 - micro_batch.MARGIN))
        make_trainer(B=B).run()
        losses.append(read_log(tmp_path / "log")["train"].values.tolist())
    assert losses[0] == losses[1]
    monkeypatch.setattr(micro_batch, "available_memory", lambda: memory_of(99))
    assert make_trainer(B="auto", resume=True).cfg.B == 4, "a resumed run keeps its B, to go on to the bit"


def test_B_auto_says_when_nothing_fits(make_trainer, monkeypatch):
    monkeypatch.setattr(micro_batch, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="not even one sequence of T = 32 fits"):
        make_trainer(B="auto")


def test_a_gpu_is_asked_by_trying(monkeypatch):
    """The search over a model that runs out of memory above 4 rows, as a GPU's allocator would tell."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=1000))
    tried = []

    class Limited(GPT):
        def forward(self, idx, targets):
            tried.append(len(idx))
            if len(idx) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(idx, targets)

    model = Limited(GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=1, n_embd=8))
    fits = micro_batch.try_on_gpu(TrainConfig(T=8), runtime.start("cpu", "float32"), model)
    assert [B for B in micro_batch.powers_of_two(32) if fits(B)] == [4, 2, 1]
    assert tried == [32, 16, 8, 4, 4, 2, 2, 1, 1], "two micro-steps each: the second finds the first one's gradients"
    assert all(p.grad is None for p in model.parameters())


def test_free_memory_is_the_containers_where_that_is_less(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    free = lambda: micro_batch.available_memory(tmp_path / "meminfo", tmp_path)  # noqa: E731
    assert free() == 500 * 1024
    for limit, expected in (("max", 500 * 1024), ("300000", 100000), ("900000", 500 * 1024)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("200000\n")
        assert free() == expected
    assert micro_batch.available_memory(tmp_path / "absent") > 2**20


def test_B_auto_in_a_config_file_and_nonsense_refused(tmp_path):
    (tmp_path / "mine.py").write_text('B = "auto"\n')
    assert configure(TrainConfig, [str(tmp_path / "mine.py")]).B == "auto"
    assert configure(TrainConfig, ["--B=8"]).B == 8
    with pytest.raises(UserError, match="expected an integer or auto"):
        configure(TrainConfig, ["--B=large"])
