"""`--B auto` finds the largest micro-batch that fits."""

from types import SimpleNamespace

import pytest
import torch

from configurator import configure
from model import GPT, GPTConfig
from system import runtime
from system.errors import UserError
from tracking.runlog import read_log
from train_gpt2 import train
from training import costs, micro_batch
from training.config import TrainConfig


def memory_of(B):
    config = GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
    return costs.memory(config, TrainConfig(T=32, block_size=32), B, torch.float32, device_type="cpu").total


@pytest.mark.cpu
@pytest.mark.parametrize(("total", "free_for", "expected"), [(768, 24, 8), (768, 7, 4), (768, 8, 8), (512, 99, 16)])
def test_B_auto_is_the_largest_power_of_two_that_fits_and_divides(make_run, monkeypatch, total, free_for, expected):
    free = (memory_of(free_for) + 1) / (1 - micro_batch.MARGIN)
    monkeypatch.setattr(micro_batch, "available_memory", lambda: free)
    run = make_run(B="auto", total_batch_size=total, max_steps=2)
    assert run.cfg.B == run.loader.B == expected
    assert run.loader.B * run.loader.grad_accum_steps * 32 == total


@pytest.mark.cpu
def test_B_auto_trains_like_the_number_it_finds(make_run, tmp_path, monkeypatch):
    losses = []
    for B in ("auto", 4):
        monkeypatch.setattr(micro_batch, "available_memory", lambda: memory_of(5) / (1 - micro_batch.MARGIN))
        train(make_run(B=B))
        losses.append(read_log(tmp_path / "log")["train"].values.tolist())
    assert losses[0] == losses[1]
    monkeypatch.setattr(micro_batch, "available_memory", lambda: memory_of(99))
    assert make_run(B="auto", resume=True, max_steps=6).cfg.B == 4, "a resumed run keeps its B, to go on to the bit"


@pytest.mark.cpu
def test_B_auto_is_refused_when_nothing_fits(make_run, monkeypatch):
    monkeypatch.setattr(micro_batch, "available_memory", lambda: 1000)
    with pytest.raises(UserError, match="not even one sequence of T = 32 fits"):
        make_run(B="auto")


@pytest.mark.cpu
def test_fits_by_trial_tries_each_B(monkeypatch):
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
    fits = micro_batch.fits_by_trial(TrainConfig(T=8), runtime.start("cpu", "float32"), model)
    assert [B for B in micro_batch.powers_of_two(32) if fits(B)] == [4, 2, 1]
    assert tried == [32, 16, 8, 4, 4, 2, 2, 1, 1], "two micro-steps each: the second finds the first one's gradients"
    assert all(p.grad is None for p in model.parameters())


def test_available_memory_respects_the_container(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    free = lambda: micro_batch.available_memory(tmp_path / "meminfo", tmp_path)  # noqa: E731
    assert free() == 500 * 1024
    for limit, expected in (("max", 500 * 1024), ("300000", 100000), ("900000", 500 * 1024)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("200000\n")
        assert free() == expected
    assert micro_batch.available_memory(tmp_path / "absent") > 2**20


def test_B_accepts_auto_and_integers_only(tmp_path):
    (tmp_path / "mine.py").write_text('B = "auto"\n')
    assert configure(TrainConfig, [str(tmp_path / "mine.py")]).B == "auto"
    assert configure(TrainConfig, ["--B=8"]).B == 8
    with pytest.raises(UserError, match="expected an integer or auto"):
        configure(TrainConfig, ["--B=large"])


@pytest.mark.cuda
def test_B_auto_leaves_no_memory_on_a_gpu_and_its_choice_trains(make_run, device):
    """A limit of a tenth of the GPU's memory makes the larger trials fail."""
    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        settings = {"n_layer": 4, "n_embd": 256, "T": 1024, "block_size": 1024, "total_batch_size": 2**22}
        shape = GPTConfig(block_size=1024, vocab_size=257, n_layer=4, n_head=2, n_embd=256)
        cfg = TrainConfig(B="auto", T=1024, total_batch_size=2**22)
        model = GPT(shape).to(device)
        before = torch.cuda.memory_allocated(device)
        B = micro_batch.resolve_micro_batch(cfg, runtime.Runtime(device, torch.float32), model).B
        assert torch.cuda.memory_allocated(device) == before
        assert 1 < B < 4096, "some trials failed, and not all"
        del model
        train(make_run(**settings, B=B, max_steps=1))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
