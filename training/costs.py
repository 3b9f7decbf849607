"""What a model costs: parameters, FLOPs, MFU and memory. Every such formula stands here, once."""

import time
from dataclasses import dataclass, replace

import torch

from ops.attention import blocks
from ops.linear import linear

# Dense bfloat16 peaks in FLOP/s, from the makers' data sheets (without sparsity).
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
    """Parameters of a GPT, the tied embedding once, the vocabulary's padding left out. 124M: 124,439,808."""
    C = config.n_embd
    block = 12 * C * C + 13 * C  # qkv 3C²+3C, proj C²+C, MLP 8C²+5C, two LayerNorms 4C
    return config.vocab_size * C + config.block_size * C + config.n_layer * block + 2 * C


def flops_per_token(config, T):
    """Model FLOPs of training on one token, forward and backward: 6·N + 12·n_layer·n_embd·T.

    N leaves out the position table (a lookup, no product) and the vocabulary's padding; the second term is attention's
    two products (PaLM, appendix B). Recomputation and padding are not counted, however much hardware they keep busy.
    """
    N = count_params(config) - config.block_size * config.n_embd
    return 6 * N + 12 * config.n_layer * config.n_embd * T


def mfu(config, T, tokens_per_s, peak):
    """Model FLOPs utilisation: the share of `peak` FLOP/s (of all devices together) that the model's FLOPs make up."""
    return flops_per_token(config, T) * tokens_per_s / peak


def peak_flops(device, dtype):
    """FLOP/s that the device can reach: from the table for a known GPU, else from a short measured matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in sorted(GPU_PEAKS, key=len, reverse=True):
            if known in name:
                return GPU_PEAKS[known]
    return matmul_peak(device, dtype)


def matmul_peak(device, dtype, n=None, seconds=0.3):
    """FLOP/s of a square matrix product: the best of what fits in `seconds`, the first being a warm-up."""
    n = n or (8192 if device.type == "cuda" else 1024)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    times, begin = [], time.perf_counter()
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        linear(a, b)[0, 0].item()  # as the model multiplies; reading a value waits for it
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
        return self.parameters + self.gradients + self.optimizer + self.activations + self.logits


def memory(config, B, T, dtype, optimizer="adamw", activation_checkpointing=False, device_type="cuda"):
    """An estimate of the peak while gradients accumulate: float32 weights, autocast to `dtype`; see `Memory`."""
    C, size = config.n_embd, dtype.itemsize
    padded = count_params(config) + (config.padded_vocab_size - config.vocab_size) * C
    matrices = config.n_layer * 12 * C * C
    states = 2 * padded - (matrices if optimizer == "muon" else 0)
    # Kept for the backward pass, per token and block: the residual stream twice, in float32; in the matrix products'
    # format their inputs (C, C, C, 4C), queries, keys and values (3C) and GELU's input (4C).
    a_block = 2 * C * 4 + 14 * C * size
    if device_type == "cpu" and dtype == torch.bfloat16:  # attention.BlockedAttention keeps its probabilities
        a_block += config.n_head * size * sum((stop - start) * stop for start, stop in blocks(T)) / T
    layers = (4 * C * config.n_layer + a_block) if activation_checkpointing else a_block * config.n_layer
    casts = 0 if dtype == torch.float32 else size * (matrices + config.padded_vocab_size * C)
    # A CPU turns logits into their gradient in place (loss.HeadLoss), in float32 from a copy (linear.OneDNNLinear);
    # elsewhere both stand in float32 beside them.
    logits = size * (2 if dtype == torch.float32 else 1) if device_type == "cpu" else size + 8
    return Memory(
        parameters=4 * padded,
        gradients=4 * (padded + 2 * config.padded_vocab_size * C),  # the embedding's two uses, before they are added
        optimizer=4 * states,
        activations=int(B * T * layers + casts),
        logits=B * T * config.padded_vocab_size * logits,
    )


def sharded(memory, config, shard, world_size, accumulates=True):
    """What is left of `memory` on one of `world_size` devices that share the optimizer's state, or all ("full").

    With "full" a device also holds what it computes with just now, whole: the embeddings, a block and the next one;
    and, where it `accumulates` gradients, all of them, as they cross the wire once an update.
    """
    if shard == "none" or world_size == 1:
        return memory
    optimizer = memory.optimizer // world_size
    if shard == "optimizer":
        return replace(memory, optimizer=optimizer)
    C = config.n_embd
    whole = 4 * ((config.padded_vocab_size + config.block_size) * C + 2 * (12 * C * C + 13 * C))
    parameters = min(memory.parameters, memory.parameters // world_size + whole)
    gradients = memory.gradients if accumulates else memory.gradients // world_size
    return replace(memory, parameters=parameters, gradients=gradients, optimizer=optimizer)


def gpu_hours(flops, peak, mfu):
    """Hours of one GPU for `flops` model FLOPs, of whose `peak` FLOP/s the share `mfu` is reached."""
    return flops / (peak * mfu) / 3600
