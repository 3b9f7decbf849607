"""What a run would need, without starting it: `python train_gpt2.py --dry_run`."""

from pathlib import Path

import torch

from formats.hugging_face import PRETRAINED
from formats.read import read
from model import GPTConfig
from system import runtime
from tokens.shards import read_meta, split_of
from tokens.tokenizer import VOCAB_SIZES
from training import costs
from training.micro_batch import powers_of_two
from training.setup import SYNTHETIC


def print_plan(cfg):
    """Print parameters, tokens, memory, FLOPs, hours and cost of the run that `cfg` describes.

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
    dtype = torch.bfloat16 if cfg.dtype == "auto" else runtime.DTYPES[cfg.dtype]
    return [
        "dry run: nothing is trained or written",
        costs.describe_model(config, cfg.init_from),
        f"tokens: {tokens:,} in {cfg.max_steps:,} steps of {cfg.total_batch_size:,}",
        epochs_line(cfg, meta, tokens),
        *memory_lines(cfg, config, dtype, world_size),
        f"FLOPs: {per_token * tokens:.3g}, {per_token:.3g} a token",
        *gpu_lines(cfg, per_token * tokens),
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


def epochs_line(cfg, meta, tokens):
    if cfg.data_dir == SYNTHETIC:
        return "epochs: many, of a few kB of synthetic data"
    if meta is None:
        return f"epochs: unknown, because {Path(cfg.data_dir) / 'meta.json'} does not exist"
    train = [entry for entry in meta["shards"] if split_of(Path(entry["file"]).stem) == "train"]
    windows = sum(max(0, entry["tokens"] - 1) // cfg.T for entry in train)
    if windows == 0:
        return f"epochs: none, because {cfg.data_dir} holds no window of T = {cfg.T} tokens"
    return f"epochs: {tokens / (windows * cfg.T):.2f} of the {windows:,} windows of {cfg.T} tokens in {cfg.data_dir}"


def memory_lines(cfg, config, dtype, world_size):
    """The expected memory of a device; for `B = auto` a line for each micro-batch that divides the step."""
    windows = cfg.total_batch_size // (cfg.T * world_size)
    ranks = "rank" if world_size == 1 else "ranks"
    lines = []
    for B in powers_of_two(windows) if cfg.B == "auto" else [cfg.B]:
        memory = costs.rank_memory(config, cfg, B, dtype, "cuda", world_size)
        lines.append(
            f"memory: {memory.total / 1e9:.2f} GB a device in {runtime.dtype_name(dtype)} with B {B} x T {cfg.T} x"
            f" {world_size} {ranks} x grad_accum_steps {windows // B} ({memory.parts()})"
        )
    return lines


def gpu_lines(cfg, flops):
    """Hours and cost on each known GPU at the assumed share of its peak, without validation and checkpoints."""
    price = cfg.price_per_hour
    at = f"{price:,.2f} a GPU-hour" if price else "--price_per_hour adds the cost"
    lines = [f"hours of training alone, at an assumed {cfg.assumed_mfu:.0%} of a GPU's peak (--assumed_mfu; {at}):"]
    for name, peak in costs.GPU_PEAKS.items():
        hours = costs.gpu_hours(flops, peak, cfg.assumed_mfu)
        cost = f"   cost {hours * price:>12,.2f}" if price else ""
        lines.append(f"  {name:<9}  1 GPU {hours:>10,.2f} h   8 GPUs {hours / 8:>10,.2f} h{cost}")
    return lines
