"""Print a run's banner and write its `config.json`."""

import dataclasses
import json

import torch

from ops.attention import sdpa_kernel_name
from system.files import AtomicFile
from tracking import runlog
from tracking.environment import describe_environment
from training import costs
from training.optimizer import MUON
from training.parallel import NONE, SHARD_MODES


def print_banner(run, data):
    """Print device, model, data, step and expected memory."""
    cfg, rt, config = run.cfg, run.rt, run.model.config
    rt.print(describe_device(cfg, rt))
    if rt.device.type == "cuda":
        rt.print(describe_attention(cfg, rt, config))
    rt.print(costs.describe_model(config, cfg.init_from))
    for split, shards in data.tokens.splits.items():
        total = data.tokens.tokens(split)
        rt.print(f"found {len(shards)} shards for split {split}: {total:,} {data.tokens.tokenizer} tokens")
    rt.print(
        f"tokens a step: {cfg.total_batch_size:,} = B {cfg.B} x T {cfg.T} x {rt.world_size} ranks x grad_accum_steps"
        f" {run.loader.grad_accum_steps}; steps an epoch: {len(data.train) / run.loader.windows_per_step:,.1f}"
    )
    for name, group in zip(("decayed", "non-decayed"), run.model.optimizer_groups(0.0), strict=True):
        count = sum(p.numel() for p in group["params"])
        rt.print(f"num {name} parameter tensors: {len(group['params'])}, with {count:,} parameters")
    muon = ", and Muon for the matrices of the blocks" if cfg.optimizer == MUON else ""
    rt.print(f"using fused AdamW: {run.optimizers.fused}{muon}")
    memory = costs.rank_memory(config, cfg, cfg.B, rt.dtype, rt.device.type, rt.world_size)
    rt.print(f"expected memory: {memory.total / 1e9:.2f} GB a device ({memory.parts()})")


def describe_device(cfg, rt):
    name = torch.cuda.get_device_name(rt.device) if rt.device.type == "cuda" else rt.device.type
    ranks = "1 rank" if rt.world_size == 1 else f"{rt.world_size} ranks"
    if rt.world_size > 1 and cfg.shard != NONE:
        ranks += f" that share {SHARD_MODES[cfg.shard]}"
    compiled = f"on ({cfg.compile_mode})" if cfg.compiles(rt.device.type) else "off"
    return f"device: {name}, {ranks}, {rt.precision}, torch.compile {compiled}"


def describe_attention(cfg, rt, config):
    """One line: which kernel computes attention, and the version of cuDNN that this process has loaded.

    On Hopper and later torch prefers cuDNN's kernel from version 9.15.1 on. An older cuDNN on LD_LIBRARY_PATH shadows
    the one that torch brings, and attention falls back to a slower kernel (pytorch issue 169849).
    """
    version = torch.backends.cudnn.version() or 0  # 91501 for 9.15.1
    major, minor, patch = version // 10000, version // 100 % 100, version % 100
    kernel = sdpa_kernel_name(config, cfg.T, rt.dtype, rt.device)
    return f"attention: {kernel} kernel of SDPA; cuDNN {major}.{minor}.{patch}"


def write_record(run, data):
    """Write `config.json`: settings, data, model and environment; after a resume also those of earlier starts."""
    before = runlog.read_config(run.cfg.log_dir) if run.start_step else {}
    earlier = before.get("earlier_starts", [])
    if "environment" in before:
        earlier = [*earlier, before["environment"]]
    tokens, config = data.tokens, run.model.config
    record = {
        "config": dataclasses.asdict(run.cfg),
        "data": {
            "source": tokens.meta.get("source"),
            "tokenizer": tokens.tokenizer,
            **{split: tokens.tokens(split) for split in tokens.splits},
        },
        "model": dataclasses.asdict(config) | {"parameters": costs.count_params(config)},
        "environment": {"from_step": run.start_step} | describe_environment(run.rt),
        "earlier_starts": earlier,
    }
    with AtomicFile(runlog.config_path(run.cfg.log_dir)) as f:
        f.write(json.dumps(record, indent=1).encode() + b"\n")
