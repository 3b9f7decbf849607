"""Every setting of a training run: its default, its meaning, and what would be impossible.

The defaults are the real thing: GPT-2 124M on FineWeb-Edu, with GPT-3's learning-rate schedule and batch size
(Brown et al. 2020, table 2.1 and appendix B).
"""

from dataclasses import dataclass
from typing import Literal

from system.errors import UserError
from tracking.sinks import require_installed

ZSCORES = ("skip_loss_zscore", "skip_norm_zscore")


@dataclass(frozen=True)
class TrainConfig:
    """Train a GPT-2: on one device by plain python, on many by torchrun --standalone --nproc_per_node=N."""

    data_dir: str = "edu_fineweb10B"
    """folder of token shards (fineweb.py and prepare.py make them); "synthetic" makes a few kB of its own"""
    log_dir: str = "log/gpt2_124M"
    """folder for the log, checkpoints and plot of this run"""
    resume: bool = False
    """continue from the newest good checkpoint in log_dir, or start where there is none"""
    overwrite: bool = False
    """delete the run that log_dir holds and start anew"""
    init_from: str = "scratch"
    """scratch, gpt2, gpt2-medium, gpt2-large, gpt2-xl, a folder in Hugging Face's format, or a checkpoint"""
    tokenizer: str | None = None
    """gpt2 or byte; only checked, since the data says which one it was made with"""

    block_size: int = 1024
    """longest context of the model, in tokens"""
    n_layer: int = 12
    """transformer blocks"""
    n_head: int = 12
    """attention heads"""
    n_embd: int = 768
    """width of the residual stream"""
    dropout: float = 0.0
    """share of activations dropped in training"""

    B: int | Literal["auto"] = 64
    """micro-batch: sequences that one device computes at once; auto: as many as fit (a power of two)"""
    T: int = 1024
    """tokens in a training sequence, at most block_size"""
    total_batch_size: int = 524288
    """tokens an update, over all micro-steps and ranks"""
    max_steps: int = 19073
    """updates in all"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the blocks' matrices with adamw for the rest"""
    max_lr: float = 6e-4
    """peak learning rate"""
    min_lr: float = 6e-5
    """learning rate at max_steps and after"""
    warmup_steps: int = 715
    """updates of linear warmup"""
    weight_decay: float = 0.1
    """decay of tensors with two or more dimensions"""
    beta1: float = 0.9
    """AdamW: decay of the gradient's mean"""
    beta2: float = 0.95
    """AdamW: decay of the gradient's square"""
    eps: float = 1e-8
    """AdamW: added to the denominator"""
    grad_clip: float = 1.0
    """largest norm of the gradient; 0 clips nothing"""
    seed: int = 1337
    """of the weights, of the order of the data and of dropout"""
    overfit_batch: bool = False
    """train on the first batch alone: the first check of a changed model"""
    max_bad_steps: int = 5
    """stop after so many steps in a row whose loss or gradient is not finite"""
    skip_loss_zscore: float = 0.0
    """skip an update whose loss lies so many standard deviations above the last 128 steps'; 0: never"""
    skip_norm_zscore: float = 0.0
    """the same for the gradient's norm"""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to train"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format of matrix products; weights stay float32"""
    compile: bool | None = None
    """torch.compile; by default on CUDA only"""
    compile_backend: str = "inductor"
    """torch.compile's backend"""
    activation_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time, same losses"""
    deterministic: bool = False
    """CUDA: the same bits each time, at some cost in speed (a CPU gives them anyway)"""
    dist_timeout: int = 300
    """seconds that a rank waits for the others"""
    shard: Literal["none", "optimizer", "full"] = "none"
    """what the ranks divide among them: nothing, the optimizer's state, or weights and gradients too"""
    profile: bool = False
    """profile one step, the sixth: print its top operators, write log_dir/trace_*.json.gz (that step is slower)"""
    dry_run: bool = False
    """print what the run would take (memory, FLOPs, hours, cost) and stop; needs no data and writes nothing"""
    assumed_mfu: float = 0.4
    """dry_run: share of its peak that a GPU is taken to reach"""
    price_per_hour: float = 0.0
    """dry_run: of one GPU, in any currency; 0: no costs are shown"""

    log_interval: int = 1
    """steps between lines, on the screen and in the log"""
    val_interval: int = 250
    """steps between validations; 0: only at the start and end"""
    val_tokens: int = 10485760
    """tokens in a validation, at most the split's"""
    sample_interval: int = 250
    """steps between samples; 0: none"""
    sample_prompt: str | None = None
    """what samples continue; by default a sentence for gpt2 data and nothing for byte data"""
    num_samples: int = 4
    """samples each time"""
    sample_tokens: int = 48
    """new tokens in a sample"""
    hellaswag_interval: int = 250
    """steps between HellaSwag scores (log stream hella: acc_norm); 0: none"""
    hellaswag_limit: int | None = None
    """score only the first so many of its examples; None: all 10,042"""
    hellaswag_data: str | None = None
    """a .jsonl file in HellaSwag's own fields; None: the original, downloaded once"""
    checkpoint_interval: int = 5000
    """steps between checkpoints; 0: only at the end"""
    keep_last: int = 3
    """checkpoints kept, beside the best by validation loss; 0: all"""
    on_checkpoint_error: Literal["continue", "stop"] = "continue"
    """when a checkpoint can't be written (a full disk): go on without it, or stop"""
    tensorboard: bool = False
    """log to TensorBoard too, in log_dir/tensorboard"""
    wandb: bool = False
    """log to Weights & Biases too"""

    def check(self):
        """Raise `UserError` for a value that no run could use."""
        if self.B != "auto":
            require(self.B >= 1, "B", self.B, "at least 1, or auto")
        for name in (
            "T",
            "total_batch_size",
            "max_steps",
            "val_tokens",
            "num_samples",
            "sample_tokens",
            "max_bad_steps",
        ):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "seed", "keep_last", "max_lr", "min_lr", *ZSCORES):
            require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        for name in ("log_interval", "val_interval", "sample_interval", "hellaswag_interval", "checkpoint_interval"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "steps, or 0 for never")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 ≤ value < 1")
        if self.optimizer == "muon" and self.shard == "full":
            raise UserError(
                "optimizer = muon needs its matrices whole, and shard = full divides them: shard = optimizer"
            )
        require(0 < self.assumed_mfu <= 1, "assumed_mfu", self.assumed_mfu, "0 < value ≤ 1")
        require(self.price_per_hour >= 0, "price_per_hour", self.price_per_hour, "at least 0")
        require(self.block_size >= self.T, "T", self.T, f"at most block_size = {self.block_size}")
        require(self.min_lr <= self.max_lr, "min_lr", self.min_lr, f"at most max_lr = {self.max_lr}")
        require(not (self.resume and self.overwrite), "resume", True, "--resume or --overwrite, not both")
        for package in ("tensorboard", "wandb"):
            if getattr(self, package):
                require_installed(package)

    def check_batch(self, world_size):
        """Raise `UserError` where total_batch_size is not a whole number of micro-batches; name the nearest that is."""
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


def require(ok, name, value, wanted):
    if not ok:
        raise UserError(f"{name} = {value}: expected {wanted}")
