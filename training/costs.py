"""What a model costs: parameters, FLOPs, MFU and memory. Every such formula is in this file."""

import dataclasses
import time
from dataclasses import dataclass, replace

import torch

from ops.attention import blocks
from ops.linear import linear
from training import parts
from training.optimizer import MUON
from training.parallel import NONE, OPTIMIZER

# Dense bfloat16 peaks in FLOP/s, from the manufacturers' data sheets (without sparsity).
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10": 125e12,
    "A40": 150e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,  # float16: it has no bfloat16
    "T4": 65e12,  # float16
}


def count_params(config):
    """Parameters of a GPT: the tied embedding counted once, the padding of the vocabulary not. 124M: 124,439,808."""
    C = config.n_embd
    block = 12 * C * C + 13 * C  # qkv 3C²+3C, proj C²+C, MLP 8C²+5C, two LayerNorms 4C
    return config.vocab_size * C + config.block_size * C + config.n_layer * block + 2 * C


def count_non_embedding_params(config):
    """Parameters without the embeddings of tokens and positions: the N of Kaplan et al. 2020, section 2.1."""
    return count_params(config) - (config.vocab_size + config.block_size) * config.n_embd


def describe_model(config, init_from):
    """One line: parameters, shape and origin."""
    shape = f"{config.n_layer} layers of {config.n_embd}, {config.n_head} heads, context {config.block_size}"
    return f"model: {count_params(config):,} parameters, {shape}, from {init_from}"


def flops_per_token(config, T):
    """Model FLOPs of training on one token, forward and backward: 6·N + 12·n_layer·n_embd·T.

    N excludes the position embedding (a lookup, not a product) and the padding of the vocabulary; the second term is
    attention's two products (PaLM, appendix B). Recomputation and padding are work for the hardware, not counted here.
    """
    N = count_params(config) - config.block_size * config.n_embd
    return 6 * N + 12 * config.n_layer * config.n_embd * T


def flops_by_part(config, T):
    """{part of a step: its share of `flops_per_token`}, for the table of `--profile`. Biases and LayerNorms left out.

    The backward pass multiplies twice for each product of the forward pass.
    """
    C, n_layer = config.n_embd, config.n_layer
    forward = {
        parts.EMBEDDING: 0,  # a lookup
        parts.ATTENTION: n_layer * (2 * 4 * C * C + 4 * C * T),  # four projections; scores and their product with v
        parts.MLP: n_layer * 2 * 8 * C * C,
        parts.LOSS: 2 * C * config.vocab_size,
    }
    return forward | {parts.BACKWARD: 2 * sum(forward.values())}


def mfu(config, T, tokens_per_s, peak):
    """Model FLOPs utilisation: the model's FLOP/s divided by `peak`, the FLOP/s of all devices together."""
    return flops_per_token(config, T) * tokens_per_s / peak


def peak_flops(device, dtype):
    """FLOP/s of the device: from the table for a known GPU, else measured by a short matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in sorted(GPU_PEAKS, key=len, reverse=True):
            if known in name:
                return GPU_PEAKS[known]
    return matmul_peak(device, dtype)


def matmul_peak(device, dtype, n=None, seconds=0.3):
    """FLOP/s of a square matrix product: the fastest run within `seconds`, after one warm-up run."""
    n = n or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times, begin = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        linear(a, b)[0, 0].item()  # the product that the model uses; `item` waits for it
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times[1:])


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on one device, by category."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self):
        return sum(dataclasses.astuple(self))

    def parts(self):
        """The categories in words: `parameters 0.50, gradients 0.81, …` (GB)."""
        return ", ".join(f"{name} {value / 1e9:.2f}" for name, value in dataclasses.asdict(self).items())


def memory(config, cfg, B, dtype, device_type="cuda"):
    """Estimate the peak of one unsharded device while gradients accumulate: float32 weights, autocast to `dtype`.

    `config` is the model's shape; of the run's settings `cfg`, those count that the lines below use.
    """
    C, T, size = config.n_embd, cfg.T, dtype.itemsize
    padded = count_params(config) + (config.padded_vocab_size - config.vocab_size) * C
    matrices = config.n_layer * 12 * C * C
    states = 2 * padded - (matrices if cfg.optimizer == MUON else 0)
    # Kept for the backward pass, per token and block: the residual stream twice, in float32; in the matrix products'
    # format their inputs (C, C, C, 4C), queries, keys and values (3C) and GELU's input (4C).
    a_block = 2 * C * 4 + 14 * C * size
    if device_type == "cpu" and dtype == torch.bfloat16:  # ops.attention.BlockedAttention keeps its probabilities
        a_block += config.n_head * size * sum((stop - start) * stop for start, stop in blocks(T)) / T
    if device_type == "mps":  # SDPA there trains by plain products: float32 probabilities, scaled queries and keys
        a_block += 4 * config.n_head * T + 4 * 2 * C
    layers = (4 * C * config.n_layer + a_block) if cfg.activation_checkpointing else a_block * config.n_layer
    casts = 0 if dtype == torch.float32 else size * (matrices + config.padded_vocab_size * C)
    return Memory(
        parameters=4 * padded,
        gradients=4 * (padded + 2 * config.padded_vocab_size * C),  # the embedding's two gradients before their sum
        optimizer=4 * states,
        activations=int(B * T * layers + casts),
        logits=B * T * config.padded_vocab_size * bytes_per_logit(cfg, dtype, device_type) // cfg.loss_chunks,
    )


def bytes_per_logit(cfg, dtype, device_type):
    """Bytes in memory at once for each logit, at the peak in the loss or its backward pass."""
    size = dtype.itemsize
    if device_type == "cpu":
        # The gradient replaces the logits (ops.cross_entropy), in float32 from a copy (ops.linear).
        return size * (2 if dtype == torch.float32 else 1)
    if cfg.compiles(device_type):  # logits and their gradient; inductor fuses what is float32 between them
        return 2 * size
    return 12  # float32 log-probabilities, their gradient, and the logits' gradient


def rank_memory(config, cfg, B, dtype, device_type, world_size):
    """The `Memory` of one of `world_size` ranks, by the run's shard mode."""
    whole = memory(config, cfg, B, dtype, device_type)
    accumulates = cfg.total_batch_size > B * cfg.T * world_size
    return shard_memory(whole, config, cfg.shard, world_size, accumulates)


def shard_memory(memory, config, shard, world_size, accumulates):
    """The part of `memory` on one of `world_size` devices that share the optimizer's state, or everything ("full").

    With "full" a device also holds the complete tensors that it computes with: the embeddings, a block and the next
    one; and if it `accumulates` gradients, all of them, since they are reduced only once in an update.
    """
    if shard == NONE or world_size == 1:
        return memory
    optimizer = memory.optimizer // world_size
    if shard == OPTIMIZER:
        return replace(memory, optimizer=optimizer)
    C = config.n_embd
    whole = 4 * ((config.padded_vocab_size + config.block_size) * C + 2 * (12 * C * C + 13 * C))
    parameters = min(memory.parameters, memory.parameters // world_size + whole)
    gradients = memory.gradients if accumulates else memory.gradients // world_size
    return replace(memory, parameters=parameters, gradients=gradients, optimizer=optimizer)


def gpu_hours(flops, peak, mfu):
    """Hours that one GPU takes for `flops` model FLOPs at the share `mfu` of its `peak` FLOP/s."""
    return flops / (peak * mfu) / 3600
