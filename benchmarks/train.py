"""Training speed: ours beside Hugging Face's `GPT2LMHeadModel`, same sizes, number format, optimizer and compiling.

Each variant runs in a process of its own, so that neither the allocator's settings nor the peak memory of one are the
other's. `python -m benchmarks.train '{…}'` is such a process.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

import model as model_file
from benchmarks.measure import Row, peak_rss
from model import GPT, GPTConfig
from ops import linear as linear_file
from ops.attention import merge_heads, sdpa_attention, split_heads
from ops.cross_entropy import IGNORE
from system import runtime
from system.errors import UserError
from training import costs
from training.optimizer import Optimizers, build_optimizers

OURS, HUGGING_FACE = "ours", "Hugging Face"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train GPT-2 124M, or a smaller model of its kind, on random tokens."""

    code: str = OURS
    device: str = "cpu"
    dtype: str = "bfloat16"
    B: int = 4
    T: int = 512
    n_layer: int = 12
    compile: bool = False
    keep_memory: bool = True  # runtime.keep_freed_memory: ours always, Hugging Face's on request
    tf32: bool = True  # CUDA: for what stays float32
    onednn: bool = True  # linear.py, for float32 on a CPU
    attention: str = "ours"  # or "sdpa", or "naive": all scores of a row in memory
    pad_vocabulary: bool = True
    fused: bool = True  # AdamW in one kernel
    head_loss: bool = True  # loss.head_loss rather than torch's cross-entropy
    grad_accum_steps: int = 1
    warmup: int = 3  # freed memory is kept, but all of it has to be had once
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


def measure(variant, ranks=1):
    """Run a variant in a process of its own (`ranks` of them, through torchrun) and return its `Result`."""
    launcher = ["-m", "benchmarks.train"]
    if ranks > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher]
    done = subprocess.run(
        [sys.executable, *launcher, json.dumps(dataclasses.asdict(variant))],
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
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        ours = measure(two, ranks=2)
    finally:
        del os.environ["OMP_NUM_THREADS"]
    baseline = measure(one)
    tokens = 8 * one.B * one.T
    name = "train/124M/bf16/2 ranks"
    note = f"{ours.median:.2f} against {baseline.median:.2f} s an update of 8 micro-steps"
    print(f"{name}: {note}", flush=True)
    return Row(name, "tok/s", tokens / ours.median, tokens / baseline.median, "1 rank of 2 threads", None, note)


def cuda_rows(settings):
    big = Variant(device="cuda", B=64, T=1024, compile=True, warmup=5, runs=4 * settings.runs)
    eager = dataclasses.replace(big, B=16, compile=False)
    rows = compare("train/124M/bf16/64x1024/compiled", big, dataclasses.replace(big, code=HUGGING_FACE))
    return rows + compare("train/124M/bf16/16x1024/eager", eager, dataclasses.replace(eager, code=HUGGING_FACE))


def worker(variant):
    """Train on random tokens and time each step; prints a `Result` as JSON."""
    rt = runtime.start(variant.device, variant.dtype, seed=1337, keep_memory=variant.keep_memory)
    if not variant.tf32:
        torch.set_float32_matmul_precision("highest")
    leave_out(variant)
    step = (ours if variant.code == OURS else hugging_face)(variant, rt)
    generator = torch.Generator().manual_seed(rt.rank)
    seconds = []
    for _ in range(variant.warmup + variant.runs):
        tokens = torch.randint(50257, (variant.grad_accum_steps, variant.B, variant.T + 1), generator=generator)
        tokens = tokens.to(rt.device)
        rt.synchronize()
        start = time.perf_counter()
        loss = step(tokens)
        rt.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if rt.device.type == "cuda" else peak_rss()
    if rt.master:
        result = Result(seconds[variant.warmup :], seconds[0], peak, float(loss))
        print(json.dumps(dataclasses.asdict(result)), flush=True)
    rt.close()


def leave_out(variant):
    """Take out of this process what a lower rung of the ladder does without."""
    if not variant.onednn:
        linear_file.onednn_is_faster = lambda: False
    if variant.attention == "sdpa":
        model_file.causal_attention = sdpa_attention
    if variant.attention == "naive":
        model_file.causal_attention = naive_attention
    if not variant.pad_vocabulary:
        model_file.VOCAB_MULTIPLE = 1
    if not variant.head_loss:
        model_file.head_loss = plain_loss


def naive_attention(qkv, n_head, dropout_p):
    """Attention as its formula has it: scores (B, nh, T, T), a mask, a softmax, a product."""
    q, k, v = split_heads(qkv, n_head)
    T, hs = q.shape[2:]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ k.transpose(-2, -1) * hs**-0.5).masked_fill(future, float("-inf"))
    return merge_heads(F.softmax(scores, dim=-1) @ v)


def plain_loss(x, weight, targets, vocab_size):
    logits = F.linear(x, weight)[:, :vocab_size].float()
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def ours(variant, rt):
    """A function that makes one update, as `train_gpt2.Trainer.update` does."""
    from training.config import TrainConfig
    from training.parallel import wrap_model

    model = GPT(GPTConfig(n_layer=variant.n_layer)).to(rt.device)
    _, train_model = wrap_model(model, TrainConfig(compile=variant.compile), rt)
    optimizers = build_optimizers(model, "adamw", 6e-4, (0.9, 0.95), 1e-8, 0.1)
    if not variant.fused:  # one small kernel after the other
        groups = model.optimizer_groups(0.1)
        unfused = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), foreach=False)
        optimizers = Optimizers([unfused], fused=False)
    scaler = torch.amp.GradScaler(rt.device.type, enabled=False)

    def step(tokens):
        total = 0.0
        for micro_step, t in enumerate(tokens, 1):
            if rt.world_size > 1:
                train_model.require_backward_grad_sync = micro_step == len(tokens)
            with rt.autocast():
                loss = train_model(t[:, :-1], t[:, 1:]) / len(tokens)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(scaler)
        optimizers.zero_grad()
        return total

    return step


def hugging_face(variant, rt):
    """The same update by `transformers`: autocast, fused AdamW, clipping."""
    import transformers

    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(n_layer=variant.n_layer, use_cache=False, **off)
    model = transformers.GPT2LMHeadModel(config).to(rt.device)
    called = torch.compile(model) if variant.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens):
        total = 0.0
        for t in tokens:
            x = t[:, :-1]
            with rt.autocast():  # labels are shifted inside: as many losses as ours, less one a row
                loss = called(input_ids=x, labels=x).loss / len(tokens)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


if __name__ == "__main__":
    worker(Variant(**json.loads(sys.argv[1])))
