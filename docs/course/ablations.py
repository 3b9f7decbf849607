"""Train the same small GPT with one part changed at a time, and print the validation losses: lesson 4 of the course.

    python -m docs.course.ablations                        # all of them, after the unchanged model
    python -m docs.course.ablations baseline sgd --max_steps 200

Each run uses config/scaling.py and the loop of train_gpt2.py. `model.py` is not edited: after the run is set up, a
function of `ABLATIONS` replaces parts of its model or its optimizer. To add one, write such a function and name it
there. The checkpoints are deleted at the end of each run.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import torch
import tyro
from torch import nn
from torch.nn import functional as F

from configurator import Range, configure
from ops.attention import merge_heads, split_heads
from system import runtime
from system.errors import UserError, command, require
from system.signals import StopRequest
from tracking.runlog import path_of
from train_gpt2 import train
from training.config import TrainConfig
from training.optimizer import Optimizers, adamw
from training.run_folder import checkpoint_files, own_folder
from training.setup import set_up

TOKENS = 1024  # in an update of config/scaling.py


def baseline(run):
    """The model as it is."""


def no_residual(run):
    """x = attn(ln_1(x)), then x = mlp(ln_2(x)): each block replaces the stream instead of adding to it."""
    for block in run.model.transformer.h:
        block.forward = functools.partial(forward_without_residual, block)


def forward_without_residual(block, x, cache=None, layer=None):
    x = block.attn(block.ln_1(x), cache, layer)
    return block.mlp(block.ln_2(x))


def no_positions(run):
    """The position embeddings are 0 and stay 0."""
    wpe = run.model.transformer.wpe.weight
    wpe.data.zero_()
    wpe.requires_grad_(False)


def no_mask(run):
    """Each position attends to all positions of its window, later ones included."""
    for block in run.model.transformer.h:
        block.attn.attention = full_attention


def full_attention(qkv, n_head, dropout_p=0.0):
    q, k, v = split_heads(qkv, n_head)
    return merge_heads(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p))


def no_layernorm(run):
    """All three kinds of LayerNorm pass their input on."""
    for block in run.model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    run.model.transformer.ln_f = nn.Identity()


def relu(run):
    """The MLP's activation is max(0, x) instead of GELU."""
    for block in run.model.transformer.h:
        block.mlp.forward = functools.partial(forward_with_relu, block.mlp)


def forward_with_relu(mlp, x):
    return mlp.c_proj(F.relu(mlp.c_fc(x)))


def untied_head(run):
    """The head has its own matrix, initialised like the embedding, instead of sharing it."""
    run.model.lm_head.weight = nn.Parameter(0.02 * torch.randn_like(run.model.transformer.wte.weight))


def one_head(run):
    """One head of the full width instead of four of a quarter: the same parameters and FLOPs."""
    for block in run.model.transformer.h:
        block.attn.n_head = 1


def sgd(run):
    """SGD with momentum 0.9 instead of AdamW."""
    groups = run.model.optimizer_groups(run.cfg.weight_decay)
    run.optimizers = Optimizers([torch.optim.SGD(groups, lr=run.cfg.max_lr, momentum=0.9)])


@dataclass(frozen=True)
class Ablation:
    """`change` edits a `Run` before its first step; `settings` of train_gpt2.py replace those of the others."""

    change: Callable
    settings: dict = field(default_factory=dict)


ABLATIONS = {
    "baseline": Ablation(baseline),
    "no_residual": Ablation(no_residual),
    "no_positions": Ablation(no_positions),
    "no_mask": Ablation(no_mask),
    "no_layernorm": Ablation(no_layernorm),
    "relu": Ablation(relu),
    "untied_head": Ablation(untied_head),
    "one_head": Ablation(one_head),
    "sgd": Ablation(sgd, {"max_lr": 0.03}),
    "sgd_at_adamw_rate": Ablation(sgd),
}


@dataclass(frozen=True)
class Settings:
    """Train the same small GPT with one part changed at a time."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """which changes, by their names in ABLATIONS; all without any"""
    data_dir: str = "data/stdlib"
    """folder of token shards, or "synthetic" """
    log_dir: str = "log/ablations"
    """each run has a folder in it"""
    max_steps: Annotated[int, Range(1)] = 300
    """updates in each run"""
    T: Annotated[int, Range(1, 1024)] = 128
    """tokens in a sequence; an update has 1,024 tokens for any T"""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1337
    """seed of the initial weights and the order of the data"""
    overwrite: bool = False
    """delete earlier runs of these names in log_dir"""

    def check(self):
        for name in self.names:
            if name not in ABLATIONS:
                raise UserError(f"ablation {name}: expected one of {', '.join(ABLATIONS)}")
        require(TOKENS % self.T == 0, "T", self.T, f"a divisor of {TOKENS}, the tokens in an update")
        for name in self.chosen:
            if path_of(self.folder(name)).exists() and not self.overwrite:
                raise UserError(f"{self.folder(name)} already holds a run: add --overwrite, or another --log_dir")

    @property
    def chosen(self):
        """The names of the ablations to train."""
        return self.names or tuple(ABLATIONS)

    def folder(self, name):
        return f"{self.log_dir}/{name}"


def train_changed(name, settings):
    """Train with the change called `name` to the end. Returns the `Run`; its last validation is in `run.state`."""
    ablation = ABLATIONS[name]
    values = {
        "data_dir": settings.data_dir,
        "log_dir": settings.folder(name),
        "max_steps": settings.max_steps,
        "block_size": settings.T,
        "T": settings.T,
        "B": TOKENS // settings.T,
        "warmup_steps": min(30, settings.max_steps),
        "seed": settings.seed,
        "overwrite": settings.overwrite,
        "val_tokens": 65536,
        "compile": False,
    } | ablation.settings
    cfg = configure(TrainConfig, ["config/scaling.py", *(f"--{key}={value}" for key, value in values.items())])
    rt = runtime.start(cfg.device, cfg.dtype, cfg.seed)
    with own_folder(cfg.log_dir, rt):
        run = set_up(cfg, rt, StopRequest())
        run.optimizers = None
        ablation.change(run)
        if run.optimizers is None:
            run.optimizers = Optimizers(adamw(run.model, cfg))  # of the changed model's parameters
        train(run)
        for path in checkpoint_files(cfg.log_dir):
            path.unlink()
        rt.print("deleted its checkpoints: model.py would build another model from them")
    return run


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="names")
    losses = {}
    for name in settings.chosen:
        print(f"\n=== {name}: {ABLATIONS[name].change.__doc__}", flush=True)
        losses[name] = train_changed(name, settings).state.val_loss
    print("\nvalidation loss, nats per token")
    for name, loss in losses.items():
        print(f"{name:18} {loss:.4f}")


if __name__ == "__main__":
    main()
