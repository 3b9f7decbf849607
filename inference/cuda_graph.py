"""Decode on a GPU with one CUDA graph per token instead of one launch per kernel.

A decoding step of a small model is about 200 short kernels, and launching each takes longer than running it. A graph
launches all of them at once, but it repeats the same shapes and addresses, so the cache counts its columns in a tensor.
"""

import torch


class StaticKVCache:
    """A `Cache` for one new token per row (T = 1) whose operations have the same shapes and addresses at every step.

    It shares the memory of the `KVCache` it is made from. `append` returns all columns; the mask hides the unused ones.
    """

    def __init__(self, cache):
        device = cache.k.device
        self.k, self.v, self.padding = cache.k, cache.v, cache.padding
        if self.padding is None:
            self.padding = torch.zeros(cache.k.size(1), dtype=torch.long, device=device)  # (B,)
        self.next = torch.tensor([cache.length], device=device)  # (1,) the next token's column
        self.keys = torch.arange(cache.k.size(3), device=device)  # (S,)

    def start(self, T):
        self.new = self.next.clone()
        self.next += T
        first = self.padding[:, None, None, None]
        self.visible = (self.keys <= self.new) & (self.keys >= first)  # (B, 1, 1, S)
        return self.new - self.padding[:, None]  # (B, 1)

    def append(self, layer, k, v):
        self.k[layer].index_copy_(2, self.new, k.to(self.k.dtype))
        self.v[layer].index_copy_(2, self.new, v.to(self.v.dtype))
        return self.k[layer], self.v[layer], self.visible


class GraphedStep:
    """Call `decode(model, cache, ids)` as a CUDA graph: ids (B,) → logits (B, V), which the next call overwrites.

    The graph is captured by the first call. Requires a GPU.
    """

    def __init__(self, decode, model, cache):
        self.decode, self.model, self.cache = decode, model, StaticKVCache(cache)
        self.graph = None

    def __call__(self, ids):
        if self.graph is None:
            self.capture(ids)
        self.ids.copy_(ids)
        self.graph.replay()
        return self.logits

    def capture(self, ids):
        """Record one step. It runs once before, so that libraries allocate their workspaces outside the graph."""
        self.ids = ids.clone()
        column = self.cache.next.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.decode(self.model, self.cache, self.ids)
        torch.cuda.current_stream().wait_stream(side)
        self.cache.next.copy_(column)  # undo that run; its keys and values are overwritten
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.decode(self.model, self.cache, self.ids)
