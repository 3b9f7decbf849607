"""Decoding on a GPU without launching kernels one by one: a step of static shapes, captured as a CUDA graph.

A small model's step is some two hundred short kernels, and starting each takes longer than running it. A graph replays
all of them at once, but only with the same shapes at the same addresses, so the cache counts its columns in a tensor.
"""

import torch

from model import KVCache


class StaticKVCache(KVCache):
    """A `KVCache` in which each further token, one a row, takes the same operations on the same memory.

    Every step reads all columns; those not yet filled are hidden by the mask.
    """

    def __init__(self, cache):
        """Take over what `cache` holds."""
        self.k, self.v, self.length = cache.k, cache.v, cache.length
        B = cache.k.size(1)
        self.padding = (
            cache.padding if cache.padding is not None else torch.zeros(B, dtype=torch.long, device=cache.k.device)
        )
        self.next = torch.tensor([cache.length], device=cache.k.device)  # (1,) the next token's column
        self.keys = torch.arange(cache.k.size(3), device=cache.k.device)  # (S,)

    def start(self, T):
        self.new = self.next.clone()
        self.next += T  # 1, as `append` takes it
        first = self.padding[:, None, None, None]
        self.visible = (self.keys <= self.new) & (self.keys >= first)  # (B, 1, 1, S)
        return self.new - self.padding[:, None]  # (B, 1)

    def append(self, layer, k, v):
        self.k[layer].index_copy_(2, self.new, k.to(self.k.dtype))
        self.v[layer].index_copy_(2, self.new, v.to(self.v.dtype))
        return self.k[layer], self.v[layer], self.visible


class GraphedStep:
    """`step(ids, cache)`, captured once and then replayed: ids (B,) → the logits, which the next call overwrites."""

    def __init__(self, step, ids, cache):
        self.ids = ids.clone()
        begin = cache.next.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step(self.ids, cache)  # once for real: libraries allocate their workspaces when first used
        torch.cuda.current_stream().wait_stream(side)
        cache.next.copy_(begin)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = step(self.ids, cache)

    def __call__(self, ids):
        self.ids.copy_(ids)
        self.graph.replay()
        return self.logits
