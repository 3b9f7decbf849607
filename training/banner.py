"""Print a run's banner and write its `config.json`."""

import dataclasses
import json

import torch

from ops.attention import sdpa_kernel_name
from system.files import AtomicFile
from system.words import format_count
from tracking import runlog
from tracking.environment import describe_environment
from training import costs
from training.forecast import epoch_lines, memory_lines, schedule_lines, step_line
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
        rt.print(
            f"found {format_count(len(shards), 'shard')} for split {split}: {total:,} {data.tokens.tokenizer} tokens"
        )
    if data.tokens.counted is not None:
        rt.print(f"conversations: the loss counts {data.tokens.counted['train'].mean():.0%} of the tokens")
    rt.print(step_line(cfg, rt.world_size))
    rt.print("\n".join(epoch_lines(cfg, len(data.train))))
    rt.print("\n".join(schedule_lines(cfg)))
    padding = (config.padded_vocab_size - config.vocab_size) * config.n_embd
    for name, group in zip(("decayed", "non-decayed"), run.model.optimizer_groups(0.0), strict=True):
        size = sum(p.numel() for p in group["params"])
        note = f", {padding:,} of them padding of the vocabulary" if name == "decayed" and padding else ""
        rt.print(f"num {name} parameter tensors: {len(group['params'])}, with {size:,} parameters{note}")
    muon = ", and Muon for the matrices of the blocks" if cfg.optimizer == MUON else ""
    rt.print(f"using fused AdamW: {run.optimizers.fused}{muon}")
    rt.print("\n".join(memory_lines(config, cfg, rt.dtype, rt.device, rt.world_size, built=True)))


def describe_device(cfg, rt):
    name = torch.cuda.get_device_name(rt.device) if rt.device.type == "cuda" else rt.device.type
    ranks = format_count(rt.world_size, "rank")
    if rt.world_size > 1 and cfg.shard != NONE:
        ranks += f" that share {SHARD_MODES[cfg.shard]}"
    compiled = f"on ({cfg.compile_mode})" if cfg.compiles(rt.device.type) else "off"
    return f"device: {name}, {ranks}, {rt.precision}, torch.compile {compiled}"


def describe_attention(cfg, rt, config):
    """One line: which kernel computes attention, and the version of cuDNN that this process has loaded.

    `can_use_cudnn_attention` in torch's sdp_utils.cpp decides for which versions of cuDNN torch uses its attention. An
    older cuDNN on LD_LIBRARY_PATH shadows the one that torch brings, and attention silently uses a slower kernel.
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
        "model": {
            **dataclasses.asdict(config),
            "parameters": costs.count_params(config),
            "non_embedding_parameters": costs.count_non_embedding_params(config),
            "flops_per_token": costs.flops_per_token(config, run.cfg.T),
        },
        "environment": {"from_step": run.start_step} | describe_environment(run.rt),
        "earlier_starts": earlier,
    }
    with AtomicFile(runlog.config_path(run.cfg.log_dir)) as f:
        f.write(json.dumps(record, indent=1).encode() + b"\n")
