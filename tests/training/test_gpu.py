"""What only a GPU can show: the CPU's losses, one wait in a step, NCCL, CUDA graphs in training, measured memory."""

import datetime
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from system import runtime
from tracking.runlog import read_log
from train_gpt2 import train
from training import costs
from training.compilation import MODES

pytestmark = pytest.mark.cuda


def losses(run):
    train(run)
    return read_log(run.cfg.log_dir)["train"].values


def test_training_on_a_gpu_has_the_losses_of_a_cpu(make_run):
    """20 updates in float32."""
    settings = {"max_steps": 20, "n_embd": 64}
    on_cpu, on_gpu = (losses(make_run(device=device, **settings)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("mode", MODES)
def test_compiled_training_has_the_losses_of_eager(make_run, dtype, mode):
    """With four micro-steps in an update, which CUDA graphs must not overwrite."""
    settings = {"max_steps": 12, "dtype": dtype, "deterministic": False}
    eager, compiled = (losses(make_run(compile=flag, compile_mode=mode, **settings)) for flag in (False, True))
    np.testing.assert_allclose(compiled, eager, atol={"float32": 1e-4, "tf32": 1e-2}.get(dtype, 5e-2))


def at_steps(run, actions):
    """Call actions[s] just before the run takes the batches of step s."""
    next_step = run.loader.next_step

    def next_step_after_action():
        actions.get(run.state.step, lambda: None)()
        return next_step()

    run.loader.next_step = next_step_after_action


@pytest.mark.parametrize("compiled", [False, True])
def test_step_waits_for_the_device_once(make_run, compiled):
    """Steps 4 and 5, of four micro-steps each: one wait each, for loss, norm and stop flag."""
    run = make_run(max_steps=8, compile=compiled, deterministic=False)
    set_mode = torch.cuda.set_sync_debug_mode
    at_steps(run, {4: lambda: set_mode("warn"), 6: lambda: set_mode("default")})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(run)
    waits = [str(warning.message) for warning in caught if "synchronizing CUDA operation" in str(warning.message)]
    assert len(waits) == 2, waits


def test_nccl_with_one_rank_trains_as_without_it(make_run, device, monkeypatch):
    expected = losses(make_run())
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(dist, "rendezvous", lambda *args, **kwargs: iter([(store, 0, 1)]))
    runtime.join_process_group(torch.device("cuda", 0), datetime.timedelta(seconds=60))
    try:
        assert dist.get_backend() == "nccl"
        run = make_run()
        run.train_model = DistributedDataParallel(run.model, device_ids=[0], gradient_as_bucket_view=True)
        np.testing.assert_allclose(losses(run), expected, atol=1e-5)
        total = torch.arange(3.0, device=device)
        dist.all_reduce(total)
        assert total.tolist() == [0, 1, 2]
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("chunks", [1, 8])
def test_memory_estimate_is_within_15_percent_of_the_peak(make_run, corpus, compiled, chunks):
    """Four layers as wide as GPT-2's, with GPT-2's vocabulary, in bfloat16."""
    shape = {"n_layer": 4, "n_head": 12, "n_embd": 768, "block_size": 1024, "T": 1024, "B": 8, "val_tokens": 8192}
    settings = shape | {"total_batch_size": 2 * 8 * 1024, "loss_chunks": chunks, "compile": compiled, "max_steps": 3}
    meta = corpus / "meta.json"
    meta.write_text(meta.read_text().replace('"byte"', '"gpt2"'))
    run = make_run(dtype="bfloat16", deterministic=False, **settings)
    assert run.model.config.vocab_size == 50257
    train(run)
    estimate = costs.memory(run.model.config, run.cfg, 8, torch.bfloat16, "cuda").total
    assert read_log(run.cfg.log_dir)["mem_gb"].values[-1] * 1e9 == pytest.approx(estimate, rel=0.15)


def test_banner_names_the_attention_kernel_and_cudnn(make_run, capsys):
    make_run(dtype="bfloat16")
    assert "kernel of SDPA; cuDNN " in capsys.readouterr().out
