"""Training speed: our GPT compared with Hugging Face's `GPT2LMHeadModel`, both trained by the loop of train_gpt2.py.

Each variant runs in a process of its own (`python -m benchmarks.train '{…}'`), so that allocator settings and peak
memory of one do not affect the other.
"""

import contextlib
import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys

import torch
from torch.nn import functional as F

from benchmarks.measure import Row
from model import GPT, GPTConfig, Linear
from ops.attention import causal_attention, merge_heads, sdpa_attention, split_heads
from ops.cross_entropy import IGNORE, head_loss, torch_loss
from system import runtime
from system.errors import UserError
from system.memory import peak_memory
from train_gpt2 import train
from training import costs
from training.compilation import MODES, REDUCE_OVERHEAD
from training.config import TrainConfig
from training.optimizer import Optimizers
from training.setup import assemble

OURS, HUGGING_FACE = "ours", "Hugging Face"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train GPT-2 124M, or fewer of its layers, on random tokens."""

    code: str = OURS
    device: str = "cpu"
    dtype: str = "bfloat16"
    B: int = 4
    T: int = 512
    n_layer: int = 12
    compile: bool = False
    compile_mode: str = "default"
    keep_memory: bool = True  # runtime.keep_freed_memory
    onednn: bool = True  # ops.linear, for float32 on a CPU
    attention: str = "ours"  # a key of ATTENTION
    pad_vocabulary: bool = True
    fused: bool = True  # AdamW in one kernel
    loss: str = "ours"  # a key of LOSSES
    loss_chunks: int = 1
    grad_accum_steps: int = 1
    warmup: int = 3  # steps not timed: the allocator reaches its final size in the third
    runs: int = 5


@dataclasses.dataclass(frozen=True)
class Result:
    seconds: list[float]  # of each timed step
    first_s: float  # of the first step, compiling included
    peak: int  # bytes
    loss: float  # after all steps

    @property
    def median(self):
        return statistics.median(self.seconds)

    @property
    def spread(self):
        return (max(self.seconds) - min(self.seconds)) / self.median


def measure(variant, ranks=1, threads=None):
    """Run a variant in a process of its own (`ranks` of them, through torchrun) and return its `Result`.

    `threads`: of each process on a CPU; None: as many as this process would use.
    """
    launcher = ["-m", "benchmarks.train"]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher]
    done = subprocess.run(
        [sys.executable, *launcher, json.dumps(dataclasses.asdict(variant))],
        env=os.environ | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UserError(f"{variant} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return Result(**json.loads(lines[-1]))


def run(settings):
    """The rows of `python bench.py train`."""
    device = runtime.pick_device(settings.device)
    if device.type == "cuda":
        return cuda_rows(settings)
    half = Variant(device=device.type, B=4, T=512, runs=settings.runs)
    single = Variant(device=device.type, dtype="float32", B=4, T=64, runs=2 * settings.runs)
    rows = compare("train/124M/bf16/4x512", half, dataclasses.replace(half, code=HUGGING_FACE, keep_memory=False))
    rows += compare("train/124M/fp32/4x64", single, dataclasses.replace(single, code=HUGGING_FACE, keep_memory=False))
    if device.type == "mps":
        return rows
    name = "train/124M/bf16/4x512/allocator"
    rows += compare(name, half, dataclasses.replace(half, code=HUGGING_FACE), "Hugging Face, our allocator setting")
    return [*rows, two_ranks(settings)]


def compare(name, ours, baseline, baseline_name=None):
    """One row, and a line as soon as it is known."""
    results = [measure(ours), measure(baseline)]
    tokens = ours.B * ours.T * ours.grad_accum_steps
    device, dtype = torch.device(ours.device), runtime.DTYPES[ours.dtype]
    peak = costs.peak_flops(device, dtype)
    limit = peak / costs.flops_per_token(GPTConfig(n_layer=ours.n_layer), ours.T)
    speeds = [tokens / result.median for result in results]
    note = (
        f"{results[0].median * 1000:,.0f} against {results[1].median * 1000:,.0f} ms a step (spread"
        f" {results[0].spread:.0%}, {results[1].spread:.0%}); peak memory {results[0].peak / 1e9:.2f} against"
        f" {results[1].peak / 1e9:.2f} GB ({results[0].peak / results[1].peak:.0%}); first step"
        f" {results[0].first_s:.1f} s; {speeds[0] / limit:.0%} mfu; loss"
        f" {results[0].loss:.4f} against {results[1].loss:.4f}"
    )
    print(f"{name}: {note}", flush=True)
    return [Row(name, "tok/s", speeds[0], speeds[1], baseline_name or baseline.code, limit, note)]


def two_ranks(settings):
    """Two gloo ranks of one thread each against one rank of two threads, on the same tokens an update."""
    one = Variant(B=4, T=512, grad_accum_steps=8, runs=max(1, settings.runs // 2), warmup=1)
    two = dataclasses.replace(one, grad_accum_steps=4)
    ours = measure(two, ranks=2, threads=1)
    baseline = measure(one)
    tokens = 8 * one.B * one.T
    name = "train/124M/bf16/2 ranks"
    note = f"{ours.median:.2f} against {baseline.median:.2f} s an update of 8 micro-steps"
    print(f"{name}: {note}", flush=True)
    return Row(name, "tok/s", tokens / ours.median, tokens / baseline.median, "1 rank of 2 threads", None, note)


def cuda_rows(settings):
    big = Variant(device="cuda", B=64, T=1024, compile=True, warmup=5, runs=4 * settings.runs)
    eager = dataclasses.replace(big, B=16, compile=False)
    name = "train/124M/bf16/64x1024/compiled"
    rows = compare(name, big, dataclasses.replace(big, code=HUGGING_FACE))
    rows += compare(name, big, dataclasses.replace(big, attention="sdpa", loss="padded"), "a step as in build-nanogpt")
    rows += compare("train/124M/bf16/16x1024/eager", eager, dataclasses.replace(eager, code=HUGGING_FACE))
    for option, changes in CUDA_OPTIONS.items():
        rows += compare(f"{name}/{option}", dataclasses.replace(big, **changes), big, "without it")
    return rows


CUDA_OPTIONS = {  # choices of which the faster one should be the default
    "logits of the padding masked": {"loss": "masked"},
    "loss in 8 chunks": {"loss_chunks": 8},
    "max-autotune": {"compile_mode": MODES[1]},
    REDUCE_OVERHEAD: {"compile_mode": REDUCE_OVERHEAD},
}


class RandomTokens:
    """A loader of random tokens that ends the run after the variant's timed steps."""

    def __init__(self, variant, rank):
        self.variant, self.grad_accum_steps = variant, variant.grad_accum_steps
        self.generator = torch.Generator().manual_seed(rank)
        self.steps_left = variant.warmup + variant.runs

    def next_step(self):
        if self.steps_left == 0:
            raise EndOfRun
        self.steps_left -= 1
        v = self.variant
        tokens = torch.randint(50257, (v.grad_accum_steps, v.B, v.T + 1), generator=self.generator)
        return ((part[:, :-1], part[:, 1:], v.grad_accum_steps) for part in tokens)


class EndOfRun(Exception):
    """Raised by `RandomTokens` after the last timed step."""


class ValuesInMemory:
    """Stands in for the run's log: keeps the loss and milliseconds of each step."""

    def __init__(self):
        self.losses, self.seconds = [], []

    def write(self, step, **values):
        self.losses.append(values["train"])
        self.seconds.append(values["dt_ms"] / 1000)


def worker(variant):
    """Train on random tokens with the loop of train_gpt2.py and print a `Result` as JSON."""
    rt = runtime.start(variant.device, variant.dtype, seed=1337, keep_memory=variant.keep_memory)
    log = ValuesInMemory()
    with contextlib.suppress(EndOfRun):
        train(make_run(variant, rt, log))
    rt.synchronize()
    peak = peak_memory(rt.device)
    if rt.master:
        result = Result(log.seconds[variant.warmup :], log.seconds[0], peak, log.losses[-1])
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    rt.close()


def make_run(variant, rt, log):
    """A `Run` without data, evaluations and a folder."""
    total = variant.B * variant.T * variant.grad_accum_steps * rt.world_size
    options = {"compile": variant.compile, "compile_mode": variant.compile_mode, "warmup_steps": 0}
    cfg = TrainConfig(B=variant.B, T=variant.T, total_batch_size=total, **options)
    model = (our_model if variant.code == OURS else HuggingFace)(variant).to(rt.device)
    run = assemble(cfg, rt, model, RandomTokens(variant, rt.rank), log)
    if not variant.fused:  # one small kernel after the other
        groups = model.optimizer_groups(cfg.weight_decay)
        run.optimizers = Optimizers([torch.optim.AdamW(groups, lr=cfg.max_lr, betas=(0.9, 0.95), foreach=False)])
    return run


def our_model(variant):
    """Our GPT, with the functions that the variant replaces."""
    config = GPTConfig if variant.pad_vocabulary else UnpaddedConfig
    model = GPT(config(n_layer=variant.n_layer))
    for block in model.transformer.h:
        block.attn.attention = ATTENTION[variant.attention]
    model.head_loss = functools.partial(head_loss, chunks=variant.loss_chunks)
    if variant.loss != OURS:
        model.head_loss = LOSSES[variant.loss]
    if not variant.onednn:
        for module in model.modules():
            if isinstance(module, Linear):
                module.product = F.linear
    return model


class UnpaddedConfig(GPTConfig):
    """GPT-2's config without padding of the vocabulary."""

    padded_vocab_size = property(lambda self: self.vocab_size)


def naive_attention(qkv, n_head, dropout_p):
    """Attention as its formula states it: scores (B, nh, T, T), a mask, a softmax, a product."""
    q, k, v = split_heads(qkv, n_head)
    T, hs = q.shape[2:]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) * hs**-0.5).masked_fill(future, float("-inf"))
    return merge_heads(F.softmax(scores, dim=-1) @ v)


ATTENTION = {"ours": causal_attention, "sdpa": sdpa_attention, "naive": naive_attention}


def padded_loss(x, weight, targets, vocab_size):
    """The loss of nanoGPT and build-nanogpt: the padding takes part in it as if it were ids."""
    return F.cross_entropy(F.linear(x, weight), targets, ignore_index=IGNORE, reduction="none")


LOSSES = {"plain": torch_loss, "masked": functools.partial(torch_loss, mask_padding=True), "padded": padded_loss}


class HuggingFace(torch.nn.Module):
    """`transformers`' GPT-2 in the place of ours: the same loop, optimizer and clipping train it."""

    optimizer_groups = GPT.optimizer_groups

    def __init__(self, variant):
        super().__init__()
        import transformers

        off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.config = GPTConfig(n_layer=variant.n_layer)
        self.gpt2 = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_layer=variant.n_layer, use_cache=False, **off)
        )

    def forward(self, idx, targets):
        return self.gpt2(input_ids=idx, labels=idx).loss  # shifts the labels itself: one loss less in each row


if __name__ == "__main__":
    worker(Variant(**json.loads(sys.argv[1])))
