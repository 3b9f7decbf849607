"""Generate token ids: prefill the cache with the prompts, then decode one token per row and step.

A decoding step multiplies every weight matrix by one vector per row, so its time is the time to read the weights.
Hence the cache is preallocated and never copied, `for_inference` lays out the weights as the CPU reads them, and many
rows share one pass over the weights.
"""

import functools
from dataclasses import dataclass

import torch

from inference.cuda_graph import GraphedStep
from inference.eval_model import eval_mode
from inference.sampling import Sampling, next_ids, uniforms
from model import KVCache
from system.errors import UserError


@dataclass(frozen=True)
class GenerationConfig:
    max_new_tokens: int  # per row
    sampling: Sampling
    seed: int = 1337
    eot: int | None = None  # a row ends at this id; None: rows never end early
    cuda_graph: bool = False  # replay each step as a CUDA graph; needs a GPU, faster from about a hundred tokens on


@torch.no_grad()
def generate(model, prompts, config, on_token=None):
    """Continue `prompts`, a list of non-empty lists of ids. Returns the new ids, one list per prompt, without `eot`.

    `model` is a `GPT`, not a compiled or distributed wrapper; it runs in eval mode, under the caller's autocast.
    `on_token(row, id)` is called for each new id and for the `eot` that ends a row; if it returns true, the row ends
    with that id. Row i draws from its own generator, seeded by (seed, i), so its ids do not depend on the other rows,
    and torch's random state does not change. Raises `UserError` if a prompt is empty, or if the model's logits are not
    finite.
    """
    check_prompts(prompts)
    if not prompts:
        return []
    contexts = [list(prompt) for prompt in prompts]
    new = [[] for _ in prompts]
    rows = list(range(len(prompts)))  # those that are decoded; they are the rows of `ids`, `draws` and the cache
    running = set(rows)
    make_step = GraphedStep if config.cuda_graph else functools.partial
    ids = None  # the newest id of each row, (B,), which is not in the cache yet
    columns = 0  # of the cache with the newest ids
    device = model.transformer.wte.weight.device
    draws = uniforms(config.seed, len(prompts), config.max_new_tokens).to(device)  # (B, max_new_tokens)
    with eval_mode(model):
        for i in range(config.max_new_tokens):
            if ids is None or columns > model.config.block_size:
                contexts = [crop(context, model.config.block_size) for context in contexts]
                columns = max(len(contexts[row]) for row in rows)
                logits, cache = prefill(model, [contexts[row] for row in rows], config.max_new_tokens - i)
                check_finite(logits)
                step = make_step(decode, model, cache)
            else:
                logits = step(ids)
            ids = next_ids(logits, draws[:, i], config.sampling)  # (B,)
            columns += 1
            for row, token in zip(rows, ids.tolist(), strict=True):
                contexts[row].append(token)
                if row not in running:
                    continue  # a finished row is decoded until a quarter of them have finished; its tokens are dropped
                ends = on_token is not None and on_token(row, token)
                if token != config.eot:
                    new[row].append(token)
                if token == config.eot or ends:
                    running.discard(row)
            if not running:
                break
            if 4 * len(running) <= 3 * len(rows) and not config.cuda_graph:  # a graph repeats the same shapes
                kept = [position for position, row in enumerate(rows) if row in running]
                rows, ids, draws = [rows[position] for position in kept], ids[kept], draws[kept]
                cache.keep(kept)
    return new


def check_prompts(prompts):
    if not all(prompts):
        raise UserError("an empty prompt: expected at least one token; begin with the end-of-text id instead")


def check_finite(logits):
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are damaged or its training has diverged")


def crop(context, block_size):
    """The ids that the model sees: all of `context`, or if that exceeds `block_size`, its last block_size / 2.

    Positions are learned and absolute, so the context cannot move by one token without recomputing the whole cache.
    Dropping half of it makes that necessary only once per block_size / 2 tokens.
    """
    return context if len(context) <= block_size else context[-max(1, block_size // 2) :]


def prefill(model, contexts, room):
    """Process all contexts in one pass. Returns the next token's logits (B, V) and a cache with `room` free columns.

    Shorter contexts are padded on the left. The cache never exceeds `block_size` columns.
    """
    config, device = model.config, model.transformer.wte.weight.device
    longest = max(map(len, contexts))
    padding = [longest - len(context) for context in contexts]
    idx = torch.tensor([[0] * pad + context for pad, context in zip(padding, contexts, strict=True)], device=device)
    autocast = torch.is_autocast_enabled(device.type)
    cache = KVCache(
        config,
        len(contexts),
        min(config.block_size, longest + room),
        device,
        torch.get_autocast_dtype(device.type) if autocast else torch.float32,
        padding=torch.tensor(padding, device=device) if any(padding) else None,
    )
    return decode(model, cache, idx), cache


def decode(model, cache, ids):
    """Add ids, (B,) or (B, T), to the cache. Returns the next token's logits (B, V) in float32."""
    x = model.hidden(ids.view(len(ids), -1), cache)  # (B, T, C)
    return model.logits(x[:, -1]).float()
