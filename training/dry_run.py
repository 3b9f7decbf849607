"""What a run would need, without starting it: `python train_gpt2.py --dry_run`."""

import dataclasses
from pathlib import Path

import torch

from formats.hugging_face import PRETRAINED
from formats.read import read
from model import GPTConfig
from system import runtime
from system.errors import UserError
from system.words import duration
from tokens.shards import read_meta, split_of
from tokens.tokenizer import VOCAB_SIZES
from training import costs
from training.config import SYNTHETIC
from training.forecast import epoch_lines, memory_lines, rate_chart, schedule_lines, step_line
from training.micro_batch import fits_by_estimate, powers_of_two

TYPICAL_GPUS = ("RTX 4090", "A100", "H100", "B200")  # of costs.GPU_PEAKS: those that a plan lists
SHORT_RUN = 3600  # seconds: for a run that is this short on this machine no other machine is listed


def print_plan(cfg):
    """Print parameters, tokens, memory, FLOPs, time and cost of the run that `cfg` describes.

    Reads at most the `meta.json` of the data folder and the shape in a model file, and writes nothing. Under torchrun
    it counts the ranks without starting a process group.
    """
    rank, _, world_size = runtime.read_ranks()
    cfg.check_batch(world_size)
    if rank == 0:
        print("\n".join(plan_lines(cfg, world_size)))


def plan_lines(cfg, world_size):
    meta = None if cfg.data_dir == SYNTHETIC else read_meta(cfg.data_dir)
    config = model_config(cfg, meta)
    tokens = cfg.max_steps * cfg.total_batch_size
    per_token = costs.flops_per_token(config, cfg.T)
    device = device_here(cfg)
    dtype = planned_dtype(cfg, device)
    cfg = with_number_for_B(cfg, config, dtype, device, world_size)
    lines = [
        "dry run: nothing is trained or written",
        costs.describe_model(config, cfg.init_from),
        f"tokens: {tokens:,} in {cfg.max_steps:,} steps of {cfg.total_batch_size:,}",
        step_line(cfg, world_size),
        *data_lines(cfg, meta),
        *schedule_lines(cfg),
        rate_chart(cfg),
        *memory_lines(config, cfg, dtype, device, world_size),
    ]
    if plans_for_gpu(cfg, device):
        lines += memory_lines(config, cfg, planned_dtype(cfg, None), None, world_size)
    return [
        *lines,
        f"FLOPs: {per_token * tokens:.3g}, {per_token:.3g} a token",
        *time_lines(cfg, per_token * tokens, dtype, device, world_size),
    ]


def model_config(cfg, meta):
    """The shape of the model that `build_model` would make."""
    if cfg.init_from in PRETRAINED:
        return GPTConfig(**PRETRAINED[cfg.init_from])  # known without a download
    if cfg.init_from != "scratch":
        return GPTConfig.from_file(read(cfg.init_from))  # reads no tensors
    if cfg.data_dir == SYNTHETIC:
        tokenizer = "byte"
    elif meta:
        tokenizer = meta["tokenizer"]
    else:
        tokenizer = cfg.tokenizer or "gpt2"
    return GPTConfig(cfg.block_size, VOCAB_SIZES[tokenizer], cfg.n_layer, cfg.n_head, cfg.n_embd)


def device_here(cfg):
    """The device of this machine that the run would use; None if it asks for a GPU and there is none."""
    try:
        return runtime.pick_device(cfg.device)
    except UserError:
        return None


def plans_for_gpu(cfg, device):
    """Whether the plan also describes the run on a GPU that this machine does not have."""
    return cfg.device == "auto" and device.type != "cuda"


def planned_dtype(cfg, device):
    if device is not None:
        return runtime.pick_dtype(cfg.dtype, device)
    return torch.bfloat16 if cfg.dtype == "auto" else runtime.DTYPES[cfg.dtype]


def with_number_for_B(cfg, config, dtype, device, world_size):
    """`cfg` with a number for `B = auto`: the largest power of two that fits by the estimate, or 1.

    A GPU that is not on this machine is taken to have room for one sequence.
    """
    if cfg.B != "auto":
        return cfg
    largest = 1
    if device is not None:
        fits = fits_by_estimate(cfg, runtime.Runtime(device, dtype, 0, world_size), config)
        windows = cfg.total_batch_size // (cfg.T * world_size)
        largest = next((B for B in powers_of_two(windows) if fits(B)), 1)
    return dataclasses.replace(cfg, B=largest)


def data_lines(cfg, meta):
    """How often the run reads its data."""
    if cfg.data_dir == SYNTHETIC:
        return epoch_lines(cfg, 0)
    if meta is None:
        return [f"epochs: unknown, because {Path(cfg.data_dir) / 'meta.json'} does not exist"]
    train = [entry for entry in meta["shards"] if split_of(Path(entry["file"]).stem) == "train"]
    windows = sum(max(0, entry["tokens"] - 1) // cfg.T for entry in train)
    if windows == 0:
        return [f"epochs: none, because {cfg.data_dir} holds no window of T = {cfg.T} tokens"]
    return epoch_lines(cfg, windows)


def time_lines(cfg, flops, dtype, device, world_size):
    """The time on this machine and, for a long run without a GPU here, on typical GPUs: without validation."""
    lines = []
    if device is not None:
        peak = costs.peak_flops(device, dtype)
        devices = world_size if device.type == "cuda" else 1  # ranks on a CPU share its cores
        seconds = flops / (peak * devices * cfg.assumed_mfu)
        lines.append(
            f"time: {duration(seconds)} of training alone on this machine's {device.type}, at an assumed"
            f" {cfg.assumed_mfu:.0%} of its peak of {peak * devices / 1e12:.3g} TFLOP/s (--assumed_mfu)"
        )
        if device.type == "cuda":
            return lines + cost_lines(cfg, seconds * devices)
        if not plans_for_gpu(cfg, device) or seconds < SHORT_RUN:
            return lines
    return lines + gpu_lines(cfg, flops)


def cost_lines(cfg, gpu_seconds):
    if not cfg.price_per_hour:
        return []
    return [f"cost: {gpu_seconds / 3600 * cfg.price_per_hour:,.2f} at {cfg.price_per_hour:,.2f} a GPU-hour"]


def gpu_lines(cfg, flops):
    """Time and cost on typical GPUs at the assumed share of their peak, without validation and checkpoints."""
    price = cfg.price_per_hour
    at = f"{price:,.2f} a GPU-hour" if price else "--price_per_hour adds the cost"
    lines = [f"training alone on GPUs, at an assumed {cfg.assumed_mfu:.0%} of their peak (--assumed_mfu; {at}):"]
    for name in TYPICAL_GPUS:
        hours = costs.gpu_hours(flops, costs.GPU_PEAKS[name], cfg.assumed_mfu)
        cost = f"   cost {hours * price:>12,.2f}" if price else ""
        times = f"1 GPU {duration(hours * 3600):>10}   8 GPUs {duration(hours * 450):>10}"
        lines.append(f"  {name:<9}  {times}{cost}")
    return lines
