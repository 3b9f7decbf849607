"""A dry run prints what a run would need and changes nothing."""

import json
import re

import numpy as np
import pytest
import torch
from helpers import ROOT, TINY, as_flags, run_script, write_corpus

from configurator import configure
from model import GPTConfig
from system.words import duration
from training import costs, dry_run, micro_batch
from training.config import TrainConfig
from training.dry_run import plan_lines


def plan_text(*argv, world_size=1):
    return "\n".join(plan_lines(configure(TrainConfig, argv), world_size))


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("config/*.py")), ids=lambda path: path.stem)
def test_plan_of_every_recipe(recipe):
    cfg = configure(TrainConfig, [str(recipe), "--device=cuda"])
    cfg.check_batch(1)
    assert plan_lines(cfg, 1)[0] == "dry run: nothing is trained or written"


def test_plan_of_own_text_fits_a_book_and_warns_about_a_page(tmp_path):
    for characters, warns in ((500_000, False), (3000, True)):
        data = write_corpus(tmp_path / str(characters), "x" * characters, shards=1, val=characters // 10)
        text = plan_text(str(ROOT / "config/own_text.py"), f"--data_dir={data}", "--device=cuda")
        assert ("warning: the run reads its " in text) == warns


def test_plan_of_gpt2_124M_equals_a_calculation_by_hand():
    text = plan_text("--price_per_hour=2.5", "--assumed_mfu=0.5", "--data_dir=absent", "--device=cuda")
    tokens = 19073 * 2**19
    flops = tokens * (6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024)
    hours = flops / (989e12 * 0.5) / 3600
    assert "124,439,808 parameters" in text
    assert f"tokens: {tokens:,} in 19,073 steps of 524,288" in text
    assert f"FLOPs: {flops:.3g}" in text
    found = re.search(r"H100 +1 GPU +([\d.]+) h +8 GPUs +([\d.]+) min +cost +([\d.]+)", text).groups()
    np.testing.assert_allclose([float(x) for x in found], [hours, hours * 60 / 8, hours * 2.5], rtol=0.02)
    assert "epochs: unknown, because absent/meta.json" in text
    assert all(f"  {name} " in text for name in dry_run.TYPICAL_GPUS)


def test_plan_agrees_with_the_table_of_recipes_in_the_docs():
    page = (ROOT / "docs" / "reproduce_gpt2_124M.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(config/gpt\w+\.py)` \| (.+) \|$", page, re.M)
    assert len(rows) == len([*ROOT.glob("config/gpt*.py")])
    for recipe, cells in rows:
        text = plan_text(str(ROOT / recipe), "--price_per_hour=2.5", "--device=cuda")
        parameters, tokens = re.search(r"([\d,]+) parameters.*\ntokens: ([\d,]+)", text).groups()
        flops = re.search(r"FLOPs: ([^,]+)", text)[1]
        time, cost = re.search(r"H100 .* 8 GPUs +([\d.]+ \w+) +cost +([\d.]+)", text).groups()
        tokens = f"{int(tokens.replace(',', '')) / 1e9:.1f}e9"
        assert cells.split(" | ") == [parameters, tokens, flops, time, cost]


def test_plan_counts_the_windows_that_training_would_use(corpus, make_run):
    run = make_run()
    text = plan_text(*as_flags(TINY | {"data_dir": corpus}))
    windows = len(run.loader.windows)
    assert f"epochs: {5 * 512 / (windows * 32):.2f} of the {windows:,} windows of 32 tokens" in text
    assert f"model: {costs.count_params(run.model.config):,} parameters" in text, "the data's vocabulary"


def test_plan_counts_the_ranks_of_torchrun():
    assert "B 64 x T 1024 x 8 ranks x grad_accum_steps 1\n" in plan_text(world_size=8)


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
    text = plan_text("--shard=full", "--device=cuda", world_size=8)
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


def test_plan_for_B_auto_takes_the_largest_that_fits(monkeypatch):
    of_two = costs.memory(GPTConfig(), TrainConfig(), 2, torch.float32, "cpu").total
    monkeypatch.setattr(micro_batch, "available_memory", lambda: 1.01 * of_two / (1 - micro_batch.MARGIN))
    text = plan_text("--B=auto", "--device=cpu", "--dtype=float32", "--data_dir=absent")
    assert "B 2 x T 1024 x 1 rank x grad_accum_steps 256" in text
    assert "warning" not in text


def test_plan_says_the_same_as_the_banner(make_run, corpus, monkeypatch, capsys):
    """The lines on tokens, epochs and memory, with their warnings: too many epochs, too little memory."""
    monkeypatch.setattr(micro_batch, "available_memory", lambda: 1_000_000)
    settings = TINY | {"data_dir": corpus, "max_steps": 5000}
    make_run(**settings)
    banner = capsys.readouterr().out.splitlines()
    plan = plan_text(*as_flags(settings)).splitlines()
    both = [line for line in plan if line in banner]
    for words in (
        "model: ",
        "tokens a step: 512 = B 4 x T 32 x 1 rank x",
        "epochs: ",
        "expected memory: ",
        "warning: the run reads",
    ):
        assert any(line.startswith(words) for line in both), words
    steps = int(re.search(r"--max_steps (\d+)", "\n".join(both))[1])
    assert "warning: the run reads" not in plan_text(*as_flags(settings | {"max_steps": steps}))
    for lines in (banner, plan):
        assert any(line.startswith("warning: expected memory of") and "lower --B (now 4;" in line for line in lines)


def test_plan_without_a_gpu_describes_this_machine_and_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    text = plan_text("--data_dir=absent", "--dtype=float32")
    assert "GB a device on cpu in float32" in text
    assert "GB a device on a GPU in float32" in text
    assert "on this machine's cpu" in text
    assert "  H100 " in text
    short = plan_text("config/debug.py", "--device=cpu")
    assert "GPU" not in short
    assert re.search(r"time: \d+ s of training alone on this machine's cpu", short)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.2, "3 s"), (600, "10 min"), (4 * 3600, "4.0 h"), (10 * 86400, "10.0 days")]
)
def test_duration_has_a_sensible_unit(seconds, text):
    assert duration(seconds) == text
