"""--profile records exactly one whole step."""

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from configurator import configure
from system.errors import UserError
from train_gpt2 import train
from training import parts
from training.config import TrainConfig


def profile(make_run, **settings):
    """(trace, name of its file) of a tiny run with --profile."""
    run = make_run(profile=True, **settings)
    train(run)
    (path,) = Path(run.cfg.log_dir).glob("trace_*")
    return json.loads(gzip.decompress(path.read_bytes())), path.name


def test_profile_trace_holds_one_step_and_its_table_adds_up(make_run, capsys):
    trace, name = profile(make_run, max_steps=8, n_layer=3, B=4)  # 512 tokens are 4 micro-steps of 4 x 32
    assert name == "trace_00005.json.gz"
    calls = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "cpu_op"]
    assert calls.count("aten::gelu") == calls.count("aten::gelu_backward") == 3 * 4
    table = capsys.readouterr().out.split("one step: ")[1]
    total = float(re.match(r"([\d,.]+) ms", table)[1].replace(",", ""))
    times = re.findall(r" ([\d,.]+) +[\d.]+%$", table, re.MULTILINE)
    assert sum(float(ms.replace(",", "")) for ms in times) == pytest.approx(total, abs=0.1)
    assert "step    6 |" in table  # the run went on


def test_profile_shows_the_time_and_flops_of_each_part(make_run, capsys):
    """The FLOPs add up to all of them, the times of the parts to less than the step, and no mark stays in the model."""
    run = make_run(profile=True, max_steps=2, activation_checkpointing=True)
    train(run)
    rows = re.findall(r"^([a-zA-Z ]+?) +([\d.,]+) +([\d.]+)% +([\d.]+)%$", capsys.readouterr().out, re.MULTILINE)
    shares = {name: (float(time), float(flops)) for name, _, time, flops in rows}
    assert set(shares) >= {"embedding", "attention", "MLP", "head and loss", "backward", "optimizer", "rest"}
    assert sum(flops for _, flops in shares.values()) == pytest.approx(100, abs=0.5)
    assert shares["backward"][1] == pytest.approx(66.7, abs=0.1)
    assert sum(time for time, _ in shares.values()) == pytest.approx(100, abs=0.5)
    assert all(time > 0 for time, _ in shares.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in run.model.modules())


def test_milliseconds_of_nested_ranges_count_once():
    """Attention computed again in the backward pass is backward; communication in it is also counted by itself."""

    def event(name, ms, parent=None):
        return SimpleNamespace(name=name, cpu_time_total=1000 * ms, cpu_parent=parent, device_type=DeviceType.CPU)

    backward = event("autograd::engine::evaluate_function: CheckpointBackward", 7)
    inside = event("aten::mm", 3, backward)
    events = [backward, inside, event("part of GPT: attention", 2, inside), event("part of GPT: attention", 1)]
    events += [
        event("autograd::engine::evaluate_function: MmBackward", 2, inside),
        event("gloo:all_reduce", 4, backward),
    ]
    profiler = SimpleNamespace(events=lambda: events)
    assert parts.milliseconds(profiler, on_gpu=False) == {"backward": 7, "attention": 1, "communication": 4}


def test_profile_of_a_compiled_model_does_not_compile_it_again(make_run, capsys):
    torch._dynamo.reset()
    stats = torch._dynamo.utils.counters["stats"]
    run = make_run(profile=True, max_steps=2, n_layer=1, compile=True, compile_backend="eager")
    start, graphs = run.profiler.start, []

    def start_and_count(step):
        graphs.append(stats["unique_graphs"])
        start(step)

    run.profiler.start = start_and_count
    train(run)
    assert graphs[1] == stats["unique_graphs"] > graphs[0] > 0, (
        "step 0 compiles, and step 1, which is profiled, does not"
    )
    assert "forward, compiled" in capsys.readouterr().out


def test_profile_of_a_short_run_is_of_its_last_step(make_run):
    assert profile(make_run, max_steps=2)[1] == "trace_00001.json.gz"


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_nvtx_needs_a_gpu():
    with pytest.raises(UserError, match="nvtx: this machine, or this build of torch, has no CUDA; --profile works"):
        configure(TrainConfig, ["--nvtx"])
