"""Every setting of a training run: its default, its meaning, and the values that are refused.

The defaults train GPT-2 124M on FineWeb-Edu, with GPT-3's batch size, learning rates, warm-up and cosine (Brown et al.
2020, table 2.1 and appendix B). The cosine ends with the run, as in build-nanogpt; GPT-3's ended after 260 of 300
billion tokens. Each evaluation defines its own settings, see `training/evaluation.py`.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from configurator import Range
from system.errors import UserError, require
from system.runtime import DTYPES
from tracking import runlog
from tracking.runlog import MOST_STEPS
from tracking.sinks import require_installed
from training.compilation import INDUCTOR, MODES
from training.evaluation import EVALUATIONS
from training.optimizer import MUON, OPTIMIZERS
from training.parallel import FULL, SHARD_MODES
from training.schedule import CONSTANT, SCHEDULES

SYNTHETIC = "synthetic"  # a data_dir that needs no folder


@dataclass(frozen=True)
class CoreSettings:
    data_dir: str = "edu_fineweb10B"
    """folder of token shards (fineweb.py and prepare.py make them); "synthetic" makes a few kB of its own"""
    log_dir: str = "log/gpt2_124M"
    """folder for the log, checkpoints and plot of this run"""
    resume: bool = False
    """continue from the newest good checkpoint in log_dir, or start where there is none"""
    overwrite: bool = False
    """delete the run that log_dir holds and start a new one"""
    init_from: str = "scratch"
    """scratch for random weights, or
    a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT, llm.c or GGUF"""
    tokenizer: str | None = None
    """gpt2 or byte: stops the run if the data was made with another one"""

    block_size: Annotated[int, Range(1, 2**20)] = 1024
    """longest context of the model, in tokens"""
    n_layer: Annotated[int, Range(1, 10**3)] = 12
    """transformer blocks"""
    n_head: Annotated[int, Range(1, 10**4)] = 12
    """attention heads"""
    n_embd: Annotated[int, Range(1, 10**6)] = 768
    """width of the residual stream"""
    dropout: Annotated[float, Range(0, 1, excluded=1)] = 0.0
    """share of activations dropped in training"""

    B: Annotated[int | Literal["auto"], Range(1, 2**20)] = 64
    """micro-batch size: sequences that one device computes at once; auto: the largest power of two that fits"""
    T: Annotated[int, Range(1, 2**20)] = 1024
    """tokens in a training sequence, at most block_size"""
    total_batch_size: Annotated[int, Range(1)] = 524288
    """tokens in an update, over all micro-steps and ranks"""
    max_steps: Annotated[int, Range(1, MOST_STEPS)] = 19073
    """updates in the whole run"""
    optimizer: Literal[*OPTIMIZERS] = "adamw"
    """adamw, or muon for the blocks' matrices with adamw for the rest"""
    adamw_lr_scale: Annotated[float, Range(0, excluded=0)] = 1.0
    """muon: learning rate of adamw's share (embeddings, biases, LayerNorms), as a multiple of the blocks' matrices'"""
    muon_momentum: Annotated[float, Range(0, 1, excluded=1)] = 0.95
    """muon: decay of the gradient's mean; short runs learn faster with 0.9"""
    schedule: Literal[*SCHEDULES] = "cosine"
    """how the learning rate falls from max_lr to min_lr: after the warm-up (cosine, linear), at the end (wsd), never"""
    decay_steps: Annotated[int | None, Range(1, MOST_STEPS)] = None
    """updates over which it falls; by default all after the warm-up (cosine, linear) or a fifth of max_steps (wsd)"""
    max_lr: Annotated[float, Range(0)] = 6e-4
    """peak learning rate"""
    min_lr: Annotated[float, Range(0)] = 6e-5
    """learning rate after the decay"""
    warmup_steps: Annotated[int, Range(0, MOST_STEPS)] = 715
    """updates of linear warm-up"""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """decay of tensors with two or more dimensions"""
    beta1: Annotated[float, Range(0, 1, excluded=1)] = 0.9
    """AdamW: decay of the gradient's mean"""
    beta2: Annotated[float, Range(0, 1, excluded=1)] = 0.95
    """AdamW: decay of the gradient's square"""
    eps: Annotated[float, Range(0, 1)] = 1e-8
    """AdamW: added to the denominator"""
    grad_clip: Annotated[float, Range(0)] = 1.0
    """largest norm of the gradient; 0: no clipping"""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1337
    """seed of the initial weights, the order of the data and dropout"""
    overfit_batch: bool = False
    """train on the first batch only: the first check of a changed model"""
    max_bad_steps: Annotated[int, Range(1)] = 5
    """stop after this many consecutive steps whose loss or gradient is not finite"""
    skip_loss_zscore: Annotated[float, Range(0)] = 0.0
    """skip an update whose loss is this many standard deviations above the mean of the last 128 steps; 0: never"""
    skip_norm_zscore: Annotated[float, Range(0)] = 0.0
    """the same for the gradient's norm"""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """device to train on; auto: cuda, else mps, else cpu"""
    dtype: Literal["auto", *DTYPES] = "auto"
    """number format of matrix products; weights stay float32; tf32: on CUDA, float32 with 10 bits of mantissa"""
    compile: bool | None = None
    """torch.compile; by default on CUDA only"""
    compile_backend: str = "inductor"
    """torch.compile's backend"""
    compile_mode: Literal[*MODES] = "default"
    """torch.compile: default; max-autotune-no-cudagraphs tries more kernels; reduce-overhead replays CUDA graphs"""
    loss_chunks: Annotated[int, Range(1)] = 1
    """compute logits and loss in this many parts: less memory, about 9% more FLOPs at 124M, same losses"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time, same losses"""
    deterministic: bool = False
    """CUDA: bit-identical results in every run, at some cost in speed (a CPU always gives them)"""
    dist_timeout: Annotated[int, Range(1, 10**6)] = 300
    """seconds that a rank waits for the other ranks"""
    shard: Literal[*SHARD_MODES] = "none"
    """what the ranks divide among themselves: nothing, the optimizer's state, or also weights and gradients"""
    profile: bool = False
    """profile the sixth step: print its parts and top operators, write log_dir/trace_*.json.gz (that step is slower)"""
    watch: bool = False
    """log each layer's gradient norm and relative update, every log_interval steps, and draw them in watch.png"""
    nvtx: bool = False
    """CUDA: mark the sixth step for nsys profile --capture-range=cudaProfilerApi, with NVTX ranges"""
    dry_run: bool = False
    """print what the run would need (memory, FLOPs, hours, cost) and stop; needs no data and writes nothing"""
    assumed_mfu: Annotated[float, Range(0, 1, excluded=0)] = 0.4
    """dry_run: share of its peak that a GPU is taken to reach"""
    price_per_hour: Annotated[float, Range(0)] = 0.0
    """dry_run: of one GPU, in any currency; 0: no costs are shown"""

    log_interval: Annotated[int, Range(0)] = 1
    """steps between lines, on the screen and in the log"""
    checkpoint_interval: Annotated[int, Range(0)] = 5000
    """steps between numbered checkpoints; 0: only at the end"""
    keep_last: Annotated[int, Range(0)] = 3
    """newest numbered checkpoints to keep, besides model_best.pt (the lowest validation loss); 0: all"""
    on_checkpoint_error: Literal["continue", "stop"] = "continue"
    """when a checkpoint can't be written (a full disk): continue without it, or stop"""
    tensorboard: bool = False
    """also log to TensorBoard, in log_dir/tensorboard"""
    wandb: bool = False
    """also log to Weights & Biases"""

    def compiles(self, device_type):
        """Whether torch.compile is used: as set, by default on CUDA only."""
        if self.compile is None:
            return device_type == "cuda"
        return self.compile

    def check(self):
        """Raise `UserError` for settings that contradict each other; each number's own range is in its field."""
        require(self.block_size >= self.T, "T", self.T, f"at most block_size = {self.block_size}")
        self.check_schedule()
        require(self.patience == 0 or self.val_interval > 0, "val_interval", 0, "above 0, because patience counts them")
        require(not (self.resume and self.overwrite), "resume", True, "--resume or --overwrite, not both")
        if self.overwrite and self.would_delete(self.init_from):
            raise UserError(f"--overwrite would delete init_from = {self.init_from}: choose another --log_dir")
        if self.compile_mode != "default" and self.compile_backend != INDUCTOR:
            raise UserError(
                f"compile_mode = {self.compile_mode}: only compile_backend = {INDUCTOR} has modes; leave one out"
            )
        if self.nvtx and not torch.cuda.is_available():
            raise UserError("nvtx: this machine, or this build of torch, has no CUDA; --profile works on any device")
        if self.optimizer == MUON and self.shard == FULL:
            raise UserError(
                "optimizer = muon needs whole matrices, and shard = full divides them: use shard = optimizer"
            )
        for package in ("tensorboard", "wandb"):
            if getattr(self, package):
                require_installed(package)

    def check_schedule(self):
        """Raise `UserError` for learning rates that contradict the schedule or each other."""
        if self.schedule == CONSTANT:
            require(self.decay_steps is None, "decay_steps", self.decay_steps, f"None with schedule = {CONSTANT}")
            return  # min_lr is not used
        require(self.min_lr <= self.max_lr, "min_lr", self.min_lr, f"at most max_lr = {self.max_lr}")

    def would_delete(self, path):
        """Whether `path` is log_dir or in it, so that --overwrite deletes it."""
        log_dir = os.path.realpath(self.log_dir)
        return os.path.exists(path) and log_dir in (os.path.realpath(path), os.path.dirname(os.path.realpath(path)))

    def check_batch(self, world_size):
        """Raise `UserError` if total_batch_size is no whole number of micro-batches; name the nearest that is."""
        B = 1 if self.B == "auto" else self.B
        unit = B * self.T * world_size
        if self.total_batch_size % unit:
            below = self.total_batch_size // unit * unit
            above = below + unit
            nearest = below if below and self.total_batch_size - below <= above - self.total_batch_size else above
            raise UserError(
                f"total_batch_size = {self.total_batch_size} is not a multiple of B·T·ranks ="
                f" {B}·{self.T}·{world_size} = {unit}; the nearest that is: {nearest}"
            )


def recorded_settings(cfg):
    """The settings in the `config.json` of the run that `cfg` resumes, so that `--resume` alone continues it.

    Those that belong to one start of the run are left out, and those that this version does not have.
    """
    if not cfg.resume:
        return {}
    recorded = runlog.read_config(cfg.log_dir).get("config", {})
    names = {field.name for field in dataclasses.fields(cfg)} - OF_ONE_START
    return {name: value for name, value in recorded.items() if name in names}


OF_ONE_START = {"log_dir", "resume", "overwrite", "dry_run", "profile"}


@dataclass(frozen=True)
class TrainConfig(*(kind.Settings for kind in reversed(EVALUATIONS)), CoreSettings):
    """Train a GPT-2: on one device by plain python, on many by torchrun --standalone --nproc_per_node=N."""
