"""The cost formulas equal counted parameters, FLOPs and memory."""

import json
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model import GPT, GPTConfig
from ops.attention import sdpa_attention
from training import costs
from training.config import TrainConfig

SIZES = {
    "gpt2": ((12, 12, 768), 124_439_808),
    "gpt2-medium": ((24, 16, 1024), 354_823_168),
    "gpt2-large": ((36, 20, 1280), 774_030_080),
    "gpt2-xl": ((48, 25, 1600), 1_557_611_200),
}


@pytest.mark.parametrize("name", SIZES)
def test_count_params_gives_the_published_counts(name):
    (n_layer, n_head, n_embd), count = SIZES[name]
    assert costs.count_params(GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd)) == count


def test_count_params_excludes_the_padding():
    config = GPTConfig(block_size=16, vocab_size=200, n_layer=3, n_head=2, n_embd=32)
    total = sum(p.numel() for p in GPT(config).parameters())
    assert costs.count_params(config) == total - (256 - 200) * 32


def test_count_non_embedding_params_of_gpt2_124M():
    assert costs.count_non_embedding_params(GPTConfig()) == 124_439_808 - 50257 * 768 - 1024 * 768


def test_flops_per_token_equals_torchs_count():
    config = GPTConfig(block_size=128, vocab_size=256, n_layer=3, n_head=2, n_embd=64)
    model, idx = GPT(config), torch.randint(256, (2, 128))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it can count these products
        model(idx, idx).backward()
    biases_and_norms = 6 * config.n_layer * 13 * config.n_embd + 6 * 2 * config.n_embd  # in N, but not products
    expected = (costs.flops_per_token(config, 128) - biases_and_norms) * idx.numel()
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.001)


def test_mfu_of_a_known_case():
    config = GPTConfig()
    per_token = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert costs.flops_per_token(config, 1024) == per_token
    assert costs.mfu(config, 1024, tokens_per_s=1e6, peak=989e12) == pytest.approx(per_token * 1e6 / 989e12)


MEASURE = """
import json, sys
import torch
from system import runtime
from training import costs
from system.memory import peak_rss
from model import GPT, GPTConfig
from training.config import TrainConfig
from training.optimizer import OPTIMIZERS, Optimizers

dtype, n_layer, n_embd, B, T, vocab_size = json.loads(sys.argv[1])
rt = runtime.start("cpu", dtype, keep_memory=False)  # it causes fragmentation, which the formula does not model
a = torch.randn(64, 64)
with rt.autocast():
    (a @ a).sum()  # libraries allocate their own memory first
before = peak_rss()
config = GPTConfig(T, vocab_size, n_layer, 4, n_embd)
model = GPT(config)
cfg = TrainConfig(T=T)
optimizers = Optimizers(OPTIMIZERS["adamw"](model, cfg))
scaler = torch.amp.GradScaler("cpu", enabled=False)
for step in range(2):
    for micro_step in range(2):
        idx = torch.randint(vocab_size, (B, T + 1))
        with rt.autocast():
            loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
    optimizers.step(scaler)
    optimizers.zero_grad()
estimate = costs.memory(config, cfg, B, rt.dtype, device_type="cpu").total
print(json.dumps([peak_rss() - before, estimate]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' peak counts differently")
@pytest.mark.parametrize("case", [("bfloat16", 4, 384, 4, 512, 50257), ("float32", 4, 256, 4, 256, 16000)])
def test_memory_estimate_is_within_a_fifth_of_the_peak(case):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(case)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    measured, estimate = json.loads(done.stdout.splitlines()[-1])
    assert estimate == pytest.approx(measured, rel=0.2), (measured / 1e6, estimate / 1e6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_of_attention_on_mps_is_what_plain_products_keep(dtype):
    config, T = GPTConfig(64, 257, n_layer=1, n_head=8, n_embd=64), 64
    qkv = torch.randn(1, T, 3 * config.n_embd, dtype=dtype, requires_grad=True)
    kept = {}  # address → storage

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with sdpa_kernel(SDPBackend.MATH), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        sdpa_attention(qkv, config.n_head)
    mps, gpu = (costs.memory(config, TrainConfig(T=T), 1, dtype, kind).activations for kind in ("mps", "cuda"))
    estimate = mps - gpu + qkv.nbytes
    assert estimate == pytest.approx(sum(storage.nbytes() for storage in kept.values()), rel=0.1)


def test_memory_of_the_logits_is_divided_by_the_chunks():
    config = GPTConfig()
    one, eight = (costs.memory(config, TrainConfig(loss_chunks=n), 64, torch.bfloat16) for n in (1, 8))
    assert one.logits == 64 * 1024 * 50304 * 2 * 2  # compiled: the logits and their gradient
    assert eight.logits == one.logits / 8
    assert one.total - eight.total == one.logits - eight.logits


def test_flops_by_part_add_up_to_those_of_a_token():
    parts = costs.flops_by_part(GPTConfig(), 1024)
    assert sum(parts.values()) == pytest.approx(costs.flops_per_token(GPTConfig(), 1024), rel=0.002)
