"""Prompt ids → new ids: prefill the cache, then decode one token a step.

A step of decoding multiplies every weight of the model by one vector a row, so on any machine it takes as long as
reading the weights does. What can be gained: read nothing but the weights (the cache is preallocated and never copied),
read them in the form that the processor wants (`inference.reading`), and read them once for many rows.
"""

import torch

from inference.cuda_graph import GraphedStep, StaticKVCache
from inference.eval_model import eval_mode
from model import KVCache
from system.errors import UserError


@torch.no_grad()
def generate(
    model,
    prompts,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    seed=1337,
    eot=None,
    on_token=None,
    cuda_graph=False,
):
    """Continue `prompts`, lists of at least one id each, by up to `max_new_tokens` ids. Returns the new ids, lists too.

    A row ends at its first `eot` (None: never), which is not returned. `on_token(row, id)` is called for each new id as
    it is made, and for the `eot` that ends a row. `temperature`, `top_k` and `top_p` are those of `next_ids`. Row i
    draws from a generator of its own, seeded by (seed, i), so torch's random state stays as it is, and a row's text
    doesn't depend on how many others there are.

    Positions are learned, so a window can't slide by one: a row of more than `block_size` ids goes on from its last
    block_size / 2, computed anew, and so does a prompt that is longer than the context.

    `model` is a `GPT`, not a compiled or distributed wrapper of one; it runs in eval mode, and in the autocast of the
    caller. `cuda_graph` captures the step (see `static_decode`), which pays from some hundred tokens on.
    """
    if not all(prompts):
        raise UserError("an empty prompt: expected at least one token; begin with the end-of-text id instead")
    check_sampling(temperature, top_k, top_p)
    if not prompts:
        return []
    device = model.transformer.wte.weight.device
    draws = uniforms(seed, len(prompts), max_new_tokens).to(device)  # (B, max_new_tokens)
    contexts = [list(prompt) for prompt in prompts]
    new = [[] for _ in prompts]
    running = set(range(len(prompts)))
    with eval_mode(model):
        for step, logits in enumerate(next_logits(model, contexts, max_new_tokens, cuda_graph)):
            ids = next_ids(logits, draws[:, step], temperature, top_k, top_p)  # (B,)
            for row, token in enumerate(ids.tolist()):
                contexts[row].append(token)  # an ended row runs along, unheard, until the last one ends
                if row in running and on_token:
                    on_token(row, token)
                if token == eot:
                    running.discard(row)
                if row in running:
                    new[row].append(token)
            if not running:
                break
    return new


def next_logits(model, contexts, max_new_tokens, cuda_graph=False):
    """Yield the logits (B, V) of what follows `contexts`, to which the caller then adds one id each, and again."""
    block_size = model.config.block_size
    cache = None
    for step in range(max_new_tokens):
        if cache is None or max(map(len, contexts)) > block_size:
            contexts[:] = [window(context, block_size) for context in contexts]
            logits, cache = prefill(model, contexts, max_new_tokens - step)
            graphed = None
        else:
            ids = torch.tensor([context[-1] for context in contexts], device=cache.k.device)  # (B,)
            if cuda_graph and graphed is None:
                cache = StaticKVCache(cache)
                graphed = GraphedStep(lambda ids, cache: decode(model, ids, cache), ids, cache)
            logits = graphed(ids) if cuda_graph else decode(model, ids, cache)
        yield logits


def check_sampling(temperature, top_k, top_p):
    if temperature < 0:
        raise UserError(f"temperature = {temperature}: expected 0 (greedy) or more")
    if top_k < 0:
        raise UserError(f"top_k = {top_k}: expected 0 (all) or more")
    if not 0 <= top_p <= 1:
        raise UserError(f"top_p = {top_p}: expected 0 ≤ top_p ≤ 1")


def window(context, block_size):
    """What the model sees of `context`: all of it, or, once it is too long, its last block_size / 2 ids."""
    return context if len(context) <= block_size else context[-max(1, block_size // 2) :]


def prefill(model, contexts, room):
    """Compute all contexts at once. Returns the next token's logits (B, V) and a cache with room for `room` more."""
    config, device = model.config, model.transformer.wte.weight.device
    longest = max(map(len, contexts))
    padding = [longest - len(context) for context in contexts]
    idx = torch.tensor([[0] * pad + context for pad, context in zip(padding, contexts, strict=True)], device=device)
    cache = KVCache(
        config,
        len(contexts),
        min(config.block_size, longest + room),
        device,
        torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32,
        padding=torch.tensor(padding, device=device) if any(padding) else None,
    )
    return decode(model, idx, cache), cache


def decode(model, ids, cache):
    """One step: ids (B,) or (B, T) → logits (B, V) of what follows."""
    x = model.hidden(ids.view(len(ids), -1), cache)  # (B, T, C)
    return model.logits(x[:, -1]).float()


def next_ids(logits, u, temperature=1.0, top_k=0, top_p=1.0):
    """One id a row from logits (B, V), chosen by u (B,), uniform in [0, 1): where the cumulated probability passes it.

    Temperature divides the logits (0 is greedy), then only the `top_k` most probable ids are kept (0: all), and of
    those the fewest whose probability reaches `top_p` (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration"); at least one is always kept. Ids of equal probability are kept or left together as they were sorted.
    """
    if temperature == 0:
        return logits.argmax(-1)
    ids = None
    if top_k or top_p < 1:
        logits, ids = logits.topk(min(top_k or logits.size(-1), logits.size(-1)))  # most probable first
    probs = torch.softmax(logits / temperature, -1)  # (B, V) or (B, k)
    cumulated = probs.cumsum(-1)
    if top_p < 1:
        before = cumulated - probs
        before[:, 0] = -1  # the first is always kept
        cumulated = probs.masked_fill(before >= top_p, 0).cumsum(-1)
    passes = u[:, None] * cumulated[:, -1:]  # less than the total even rounded, as u is at most 1 - 2^-24
    choice = torch.searchsorted(cumulated, passes, right=True)  # (B, 1)
    return (choice if ids is None else ids.gather(1, choice))[:, 0]


def uniforms(seed, B, n):
    """Numbers in [0, 1), (B, n): row i depends on (seed, i) alone."""
    rows = []
    for row in range(B):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        rows.append(torch.rand(n, generator=generator))
    return torch.stack(rows) if rows else torch.empty(0, n)
