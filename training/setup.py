"""From settings to a `Run`: data, model, optimizer, evaluations and the run's folder."""

import contextlib
import functools
import hashlib
import os
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
import torch

from formats import checkpoint
from formats.read import read
from model import GPT, GPTConfig
from ops.cross_entropy import head_loss
from system.boundary import foreign
from system.errors import NothingToDo, UserError
from system.signals import StopRequest
from system.words import listing
from tokens.dataloader import TrainLoader, Windows
from tokens.shards import Shards, TokenData, open_data, split_of
from tokens.tokenizer import VOCAB_SIZES, get_tokenizer
from tracking.runlog import RunLog, path_of, plot_path
from tracking.sinks import open_sinks
from training import parallel
from training.banner import print_banner, write_record
from training.compilation import keeps_gradients
from training.config import SYNTHETIC, TrainConfig
from training.evaluation import prepare_evaluations
from training.micro_batch import resolve_micro_batch
from training.optimizer import OPTIMIZERS, Optimizers
from training.profiling import StepProfiler
from training.progress import Progress
from training.run_folder import check_room, finish_replacement, replaced_run
from training.saving import check_content, is_out_of_patience, load_content, take_over
from training.schedule import RATE_SETTINGS, SCHEDULES, WSD, at_end, learning_rate, most_different_step
from training.state import Run, TrainState
from training.update_filter import UpdateFilter
from training.watch import Watch


@dataclass(frozen=True)
class RunData:
    tokens: TokenData
    train: Windows
    val: Windows

    def digest(self):
        """A checksum of all shards, in their order, from the checksums in `meta.json`; None for synthetic data."""
        shards = self.tokens.meta.get("shards", [])
        checksums = [
            f"{split_of(shard['file'])} {shard['sha256']}{shard.get('mask_sha256', '')}"
            for shard in sorted(shards, key=itemgetter("file"))
        ]
        return hashlib.sha256("\n".join(checksums).encode()).hexdigest()[:16] if shards else None


def set_up(cfg, rt, stop_request):
    """Check everything, then take the run's folder and build the `Run`, new or resumed. Every rank must call it.

    Raises `UserError` for settings, data or a model that do not fit together, or a disk without room for a checkpoint,
    before anything on disk is changed.
    """
    cfg.check_batch(rt.world_size)
    rt.from_master(lambda: finish_replacement(cfg.log_dir))
    path, saved = find_checkpoint(cfg, rt)
    data = open_run_data(cfg, rt)
    if saved is not None:
        check_resume(cfg, path, saved, data)
        check_unfinished(cfg, path, saved)
        warn_of_other_rates(cfg, path, saved, rt)
    model = build_model(cfg, rt, data.tokens, saved)
    rt.from_master(lambda: check_room(cfg, model.config))
    cfg = resolve_micro_batch(cfg, rt, model, saved)
    with replaced_run(cfg.log_dir, rt) if saved is None else contextlib.nullcontext():
        run = make_run(cfg, rt, stop_request, data, model, saved)
        if saved is not None:
            rt.from_master(lambda: take_over(run, path))
        rt.from_master(lambda: write_record(run, data))
    print_banner(run, data)
    return run


def make_run(cfg, rt, stop_request, data, model, saved):
    """The `Run`, with its log opened; `saved` is the checkpoint to resume from, or None."""
    start_step = saved["step"] if saved is not None else 0
    evaluations = prepare_evaluations(cfg, rt, data, model)
    loader = TrainLoader(data.train, cfg.B, cfg.total_batch_size, cfg.seed, rt.rank, rt.world_size)
    run = assemble(cfg, rt, model, loader, open_log(cfg, rt, start_step), start_step)
    run.stop_request, run.evaluations = stop_request, evaluations
    run.tokenizer_name, run.data_digest = data.tokens.tokenizer, data.digest()
    run.chat = data.tokens.chat_window is not None
    if saved is not None:
        load_content(run, saved)
    return run


def assemble(cfg, rt, model, loader, log, start_step=0):
    """A `Run` of these parts and of what follows from the settings, without evaluations; benchmarks use it too."""
    eval_model, train_model = parallel.wrap_model(model, cfg, rt)
    shared = cfg.shard == parallel.OPTIMIZER and rt.world_size > 1
    state, scaler = TrainState(), torch.amp.GradScaler(rt.device.type, enabled=rt.dtype == torch.float16)
    return Run(
        cfg=cfg,
        rt=rt,
        stop_request=StopRequest(),
        state=state,
        model=model,
        train_model=train_model,
        eval_model=eval_model,
        optimizers=Optimizers(OPTIMIZERS[cfg.optimizer](model, cfg, shared), keeps_gradients(cfg, rt.device.type)),
        scaler=scaler,
        loader=loader,
        tokenizer_name="gpt2",
        evaluations=[],
        log=log,
        progress=Progress(cfg, rt, model.config, log),
        update_filter=UpdateFilter(cfg, rt, scaler, state, log),
        profiler=StepProfiler(cfg, rt, start_step, model),
        watch=Watch(cfg, rt, model, log),
        start_step=start_step,
    )


def open_log(cfg, rt, start_step):
    """The `RunLog` on the master, None on other ranks. Every rank must call it."""
    logs = []
    rt.from_master(lambda: logs.append(RunLog(cfg.log_dir, start_step, open_sinks(cfg, start_step), rt.print)))
    return logs[0] if logs else None


def find_checkpoint(cfg, rt):
    """(path, content) of the checkpoint to resume from, or (None, None) for a new run. Changes nothing on disk.

    Ranks restarted by torchrun always resume. Raises `UserError` if a new run would overwrite another one without
    `overwrite`.
    """
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if cfg.resume or restarted:
        path = rt.from_master(lambda: checkpoint.newest_good(cfg.log_dir, rt.print))
        if path is not None:
            rt.print(f"resuming from {path}; settings that are not given are those of its config.json")
            return path, check_content(checkpoint.load(path), path)
        rt.print(f"nothing to resume in {cfg.log_dir}: starting a new run")
    elif not cfg.overwrite and (checkpoint.newest(cfg.log_dir) is not None or path_of(cfg.log_dir).exists()):
        raise UserError(f"{cfg.log_dir} already holds a run: add --resume, --overwrite, or another --log_dir")
    return None, None


def check_resume(cfg, path, saved, data):
    """Raise `UserError` if the checkpoint belongs to another run than the settings describe; the rest may change."""
    was = saved["train_config"]
    facts = {name: (was[name], getattr(cfg, name)) for name in ("T", "seed", "optimizer")}
    facts |= {"tokenizer": (saved["tokenizer"], data.tokens.tokenizer)}
    facts |= {"training windows": (saved["train_windows"], len(data.train))}
    if cfg.init_from == "scratch":
        shape = ("block_size", "n_layer", "n_head", "n_embd")
        facts |= {name: (saved["model_config"][name], getattr(cfg, name)) for name in shape}
    for name, (old, new) in facts.items():
        if old != new:
            raise UserError(f"{name} = {new}, but {path} was made with {old}: set it so, or choose another --log_dir")
    if saved.get("data_digest") not in (None, data.digest()):  # checkpoints of earlier versions have none
        raise UserError(
            f"{cfg.data_dir} holds other tokens than those that {path} was trained on: choose their data_dir, or"
            " another --log_dir"
        )


def check_unfinished(cfg, path, saved):
    """Raise `NothingToDo` if the run has reached its end and has been evaluated and plotted after the last update."""
    step, plot = saved["step"], plot_path(cfg.log_dir)
    plotted = plot.exists() and plot.stat().st_mtime >= path.stat().st_mtime  # what comes last in a run
    if saved["val_step"] != step or not plotted:
        return
    if step >= cfg.max_steps:
        raise NothingToDo(
            f"finished: {cfg.log_dir} holds all {step:,} steps of the run; to train it further, add --max_steps"
            f" {2 * step}"
        )
    if is_out_of_patience(saved, cfg.patience):
        count = saved["validations_since_best"]
        raise NothingToDo(
            f"finished: {cfg.log_dir} stopped after step {step:,} and {count} validations without improvement; to"
            f" train it further, add --patience {2 * count}, or 0 for no such limit"
        )


def warn_of_other_rates(cfg, path, saved, rt):
    """Warn if the steps that a resumed run has made had other learning rates than `cfg` gives them."""
    made, record = saved["step"], saved["train_config"]
    with foreign(path, "the checkpoint of a run"):
        before = TrainConfig(**{name: record[name] for name in RATE_SETTINGS if name in record})
        if before.schedule not in SCHEDULES:  # a schedule of another version
            return
        step = most_different_step(cfg, before, made)
        was, now = learning_rate(step, before), learning_rate(step, cfg)
    if now == was:
        return
    changed = [name for name in RATE_SETTINGS if getattr(before, name) != getattr(cfg, name)]
    changes = listing([f"{name} changed from {getattr(before, name)} to {getattr(cfg, name)}" for name in changed])
    hint = ""
    if changed == ["max_steps"] and cfg.schedule == WSD:
        stable = min(at_end(before)[0], at_end(cfg)[0])
        hint = f"; a checkpoint of step {stable} or before extends the run without that"
    elif changed == ["max_steps"]:
        hint = f"; a run with --schedule {WSD} can be extended without that"
    rt.print(
        f"warning: {changes}: with that from the start, step {step} would have had a learning rate of {now:.2e}, not"
        f" {was:.2e}, so the losses are not those of such a run{hint}"
    )


def open_run_data(cfg, rt):
    """The run's shards, checked against its settings."""
    tokens = synthetic_data() if cfg.data_dir == SYNTHETIC else open_data_dir(cfg.data_dir, rt)
    if cfg.tokenizer not in (None, tokens.tokenizer):
        raise UserError(f"tokenizer = {cfg.tokenizer}, but {cfg.data_dir} was made with {tokens.tokenizer}")
    if tokens.chat_window not in (None, cfg.T):
        raise UserError(
            f"T = {cfg.T}, but {cfg.data_dir} holds conversations in windows of {tokens.chat_window} tokens: set it so,"
            " or prepare them again"
        )
    return RunData(tokens, make_windows(tokens, "train", cfg.T), make_windows(tokens, "val", cfg.T))


def make_windows(tokens, split, T):
    counted = None if tokens.counted is None else tokens.counted[split]
    return Windows(tokens.splits[split], T, split, tokens.max_id, counted)


def open_data_dir(data_dir, rt):
    is_fineweb = data_dir.rstrip("/").endswith("edu_fineweb10B")
    how_to_make = "python fineweb.py" if is_fineweb else f"python prepare.py SOURCE --out {data_dir}"

    def scan():
        open_data(data_dir, how_to_make)

    rt.from_master(scan)  # writes the meta.json of a foreign folder, for the other ranks; they raise its error too
    return open_data(data_dir, how_to_make)


def synthetic_data():
    """A few kB of byte tokens in memory, to check that everything works: sums, whose pattern is soon learned."""
    tokenizer, splits = get_tokenizer("byte"), {}
    for split, numbers in (("train", range(60)), ("val", range(60, 70))):
        text = "".join(f"{a} + {b} = {a + b}\n" for a in numbers for b in range(20))
        ids = np.array([tokenizer.eot, *tokenizer.encode(text)], dtype=np.uint16)
        splits[split] = Shards.in_memory([ids])
    return TokenData(splits, "byte", tokenizer.eot, {"tokenizer": "byte", "source": SYNTHETIC})


def build_model(cfg, rt, tokens, saved=None):
    """A GPT on the run's device: from the checkpoint `saved`, new, or with the weights that init_from names."""
    if saved is not None:
        model = GPT(GPTConfig(**saved["model_config"] | {"dropout": cfg.dropout}))
        model.load_state_dict(saved["model"])
    elif cfg.init_from == "scratch":
        vocab_size = VOCAB_SIZES[tokens.tokenizer]
        model = GPT(GPTConfig(cfg.block_size, vocab_size, cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.dropout))
    else:
        model_file = read(cfg.init_from)
        if model_file.tokenizer not in (None, tokens.tokenizer):
            raise UserError(
                f"init_from = {cfg.init_from} uses tokenizer {model_file.tokenizer}, but the data uses"
                f" {tokens.tokenizer}"
            )
        model = GPT.from_file(model_file, cfg.dropout).train()
    check_model(cfg, model.config, tokens)
    model.activation_checkpointing = cfg.activation_checkpointing
    model.head_loss = functools.partial(head_loss, chunks=cfg.loss_chunks)
    return model.to(rt.device)


def check_model(cfg, config, tokens):
    """Raise `UserError` if the model can't take the data's ids or the run's sequence length."""
    if tokens.max_id >= config.vocab_size:
        raise UserError(
            f"the data holds token id {tokens.max_id}, but the largest id of the {tokens.tokenizer} vocabulary is"
            f" {config.vocab_size - 1}: prepare the data again, or correct the tokenizer in its meta.json"
        )
    if config.block_size < cfg.T:
        raise UserError(f"T = {cfg.T}: expected at most the block_size of {cfg.init_from}, {config.block_size}")
