"""What a training run sets up before its first step: folder, data, model, and the banner that tells of them."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import hellaswag
from formats import checkpoint
from formats.read import read
from model import GPT, GPTConfig
from system.errors import UserError
from system.files import AtomicFile
from tokens.dataloader import Windows
from tokens.shards import TokenData, open_data, shard_name, write_meta, write_shard
from tokens.tokenizer import VOCAB_SIZES, get_tokenizer
from tracking import runlog
from tracking.environment import describe_environment
from training import costs

SHARED = {"none": "", "optimizer": "the optimizer's state", "full": "weights, gradients and optimizer state"}


def claim_log_dir(cfg, rt):
    """Make log_dir ours: the state to resume from, or None for a new run. Nothing is overwritten unasked.

    A group of ranks that torchrun has restarted resumes, whatever the flags say.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if cfg.resume or restarted:
        path = rt.from_master(lambda: checkpoint.newest_good(cfg.log_dir, rt.print))
        if path is not None:
            rt.print(f"resuming from {path}")
            return checkpoint.load(path)
        rt.print(f"nothing to resume in {cfg.log_dir}: starting anew")
    found, log = checkpoint.list_checkpoints(cfg.log_dir), runlog.path_of(cfg.log_dir)
    if (found or log.exists()) and not (cfg.overwrite or cfg.resume or restarted):
        raise UserError(f"{cfg.log_dir} already holds a run: add --resume, --overwrite, or another --log_dir")
    rt.barrier()  # every rank has looked before the first one changes anything
    if rt.master:
        for path in (*found.values(), log):
            path.unlink(missing_ok=True)
        Path(cfg.log_dir).mkdir(parents=True, exist_ok=True)
    return None


def check_resume(cfg, state, data):
    """Raise `UserError` where the checkpoint is of another run than the settings describe; the rest may change."""
    path, was = checkpoint.path_of(cfg.log_dir, state["step"]), state["train_config"]
    facts = {name: (was[name], getattr(cfg, name)) for name in ("T", "seed", "optimizer")}
    facts |= {"tokenizer": (state["tokenizer"], data.tokens.tokenizer)}
    facts |= {"training windows": (state["train_windows"], len(data.train))}
    if cfg.init_from == "scratch":
        shape = ("block_size", "n_layer", "n_head", "n_embd")
        facts |= {name: (state["model_config"][name], getattr(cfg, name)) for name in shape}
    for name, (old, new) in facts.items():
        if old != new:
            raise UserError(f"{name} = {new}, but {path} was made with {old}: set it so, or choose another --log_dir")


@dataclass(frozen=True)
class RunData:
    tokens: TokenData
    train: Windows
    val: Windows


def open_run_data(cfg, rt):
    """The run's shards, checked against its settings."""
    data_dir = cfg.data_dir
    if data_dir == "synthetic":
        data_dir = str(Path(cfg.log_dir) / "data")
        if rt.master:
            make_synthetic_data(data_dir)
    is_fineweb = data_dir.rstrip("/").endswith("edu_fineweb10B")
    how_to_make = "python fineweb.py" if is_fineweb else f"python prepare.py SOURCE --out {data_dir}"
    if rt.master:
        open_data(data_dir, how_to_make)  # may scan a foreign folder, and keeps what it finds for the others
    rt.barrier()
    tokens = open_data(data_dir, how_to_make)
    if cfg.tokenizer not in (None, tokens.tokenizer):
        raise UserError(f"tokenizer = {cfg.tokenizer}, but {data_dir} was made with {tokens.tokenizer}")
    return RunData(tokens, *(Windows(tokens.splits[split], cfg.T, split) for split in ("train", "val")))


def make_synthetic_data(data_dir):
    """A few kB of byte data for runs that only check that all works: sums, whose shape a model soon learns."""
    Path(data_dir).mkdir(parents=True, exist_ok=True)
    tokenizer, entries = get_tokenizer("byte"), []
    for index, numbers in enumerate((range(60, 70), range(60))):
        text = "".join(f"{a} + {b} = {a + b}\n" for a in numbers for b in range(20))
        tokens = np.array([tokenizer.eot, *tokenizer.encode(text)])
        entries.append(write_shard(Path(data_dir) / shard_name("sums", index, ".npy"), tokens))
    write_meta(data_dir, {"tokenizer": "byte", "source": "synthetic", "shards": entries})


def build_model(cfg, rt, tokens, state=None):
    """A GPT on the run's device: of the checkpoint `state`, new, or with the weights that init_from names."""
    if state is not None:
        model = GPT(GPTConfig(**state["model_config"] | {"dropout": cfg.dropout}))
        model.load_state_dict(state["model"])
    elif cfg.init_from == "scratch":
        vocab_size = VOCAB_SIZES[tokens.tokenizer]
        shape = (cfg.block_size, vocab_size, cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.dropout)
        model = GPT(GPTConfig(*shape))
    else:
        model_file = read(cfg.init_from)
        if model_file.tokenizer not in (None, tokens.tokenizer):
            raise UserError(
                f"init_from = {cfg.init_from} speaks {model_file.tokenizer}, but the data is {tokens.tokenizer}"
            )
        model = GPT.from_file(model_file, cfg.dropout).train()
    if tokens.max_id >= model.config.vocab_size:
        raise UserError(
            f"the data holds token id {tokens.max_id}, but the {tokens.tokenizer} vocabulary ends at"
            f" {model.config.vocab_size - 1}: prepare it anew, or name its tokenizer in its meta.json"
        )
    if model.config.block_size < cfg.T:
        raise UserError(f"T = {cfg.T}: expected at most the block_size of {cfg.init_from}, {model.config.block_size}")
    model.activation_checkpointing = cfg.activation_checkpointing
    return model.to(rt.device)


def prepare_extras(cfg, rt, tokenizer_name, model_config):
    """(tokenizer for samples, HellaSwag's examples); None for what isn't wanted or can't be had: no run ends for it."""
    tokenizer = examples = None
    try:
        if cfg.sample_interval or cfg.hellaswag_interval:
            tokenizer = get_tokenizer(tokenizer_name)
        if cfg.hellaswag_interval:
            chosen = {"data": cfg.hellaswag_data, "limit": cfg.hellaswag_limit}
            examples = hellaswag.prepare(rt, tokenizer, model_config.block_size, **chosen)
    except UserError as error:
        rt.print(f"without {'HellaSwag' if tokenizer else 'samples and HellaSwag'}: {error}")
    return tokenizer, examples


def print_banner(cfg, rt, data, model, loader, optimizers):
    name = torch.cuda.get_device_name(rt.device) if rt.device.type == "cuda" else rt.device.type
    compiled = cfg.compile if cfg.compile is not None else rt.device.type == "cuda"
    sharded = f" that share {SHARED[cfg.shard]}" * (rt.world_size > 1 and cfg.shard != "none")
    rt.print(
        f"device: {name}, {rt.world_size} rank{'s' * (rt.world_size > 1)}{sharded}, {costs.dtype_name(rt.dtype)},"
        f" torch.compile {'on' if compiled else 'off'}"
    )
    config = model.config
    rt.print(
        f"model: {costs.count_params(config):,} parameters, {config.n_layer} layers of {config.n_embd},"
        f" {config.n_head} heads, context {config.block_size}, from {cfg.init_from}"
    )
    for split, shards in data.tokens.splits.items():
        total = data.tokens.tokens(split)
        rt.print(f"found {len(shards)} shards for split {split}: {total:,} {data.tokens.tokenizer} tokens")
    rt.print(
        f"tokens a step: {cfg.total_batch_size:,} = B {cfg.B} x T {cfg.T} x {rt.world_size} ranks x"
        f" grad_accum_steps {loader.grad_accum_steps}; steps an epoch: {len(data.train) / loader.windows_per_step:,.1f}"
    )
    for name, group in zip(("decayed", "non-decayed"), model.optimizer_groups(0.0), strict=True):
        count = sum(p.numel() for p in group["params"])
        rt.print(f"num {name} parameter tensors: {len(group['params'])}, with {count:,} parameters")
    rt.print(
        f"using fused AdamW: {optimizers.fused}" + ", and Muon for the blocks' matrices" * (cfg.optimizer == "muon")
    )
    memory = costs.memory(config, cfg.B, cfg.T, rt.dtype, cfg.optimizer, cfg.activation_checkpointing, rt.device.type)
    memory = costs.sharded(memory, config, cfg.shard, rt.world_size, loader.grad_accum_steps > 1)
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in dataclasses.asdict(memory).items())
    rt.print(f"expected memory: {memory.total / 1e9:.2f} GB a device ({parts})")


def describe_run(cfg, rt, data, model, step):
    """Keep what made the run beside its log, in `config.json`: settings, data, model, and what it runs on.

    A resumed run's file also says what its earlier starts ran on.
    """
    before = runlog.read_config(cfg.log_dir) if step else {}
    earlier = before.get("earlier_starts", []) + ([before["environment"]] if "environment" in before else [])
    tokens = data.tokens
    record = {
        "config": dataclasses.asdict(cfg),
        "data": {
            "source": tokens.meta.get("source"),
            "tokenizer": tokens.tokenizer,
            **{split: tokens.tokens(split) for split in tokens.splits},
        },
        "model": dataclasses.asdict(model.config) | {"parameters": costs.count_params(model.config)},
        "environment": {"from_step": step} | describe_environment(rt),
        "earlier_starts": earlier,
    }
    with AtomicFile(runlog.config_path(cfg.log_dir)) as f:
        f.write(json.dumps(record, indent=1).encode() + b"\n")
