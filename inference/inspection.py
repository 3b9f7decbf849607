"""What a model computes for a text: surprisal of each token, alternatives, attention, differences to another model.

The surprisal of a token is -ln of the probability that the model gave it, in nats: at temperature 1, whatever the
temperature of sampling. Every function takes a `GPT` prepared for inference (`for_inference`) and a list of ids.
"""

import itertools
import math
from dataclasses import dataclass

import torch

from inference.generate import check_finite, decode, prefill
from inference.sampling import next_ids, uniforms
from inference.token_losses import token_losses
from ops.attention import split_heads
from system.errors import UserError


@dataclass(frozen=True)
class ScoredToken:
    """An id of a text. `nats` is its surprisal; None for the first id, which nothing precedes."""

    id: int
    nats: float | None


@torch.no_grad()
def score_tokens(gpt, ids):
    """The `ScoredToken`s of a text of at most block_size ids."""
    if len(ids) < 2:
        return [ScoredToken(i, None) for i in ids]
    idx = on_device(gpt, ids)  # (T,)
    x = gpt.hidden(idx[None, :-1])[0]  # (T - 1, C)
    losses = token_losses(gpt, x, idx[1:, None])[:, 0]  # (T - 1,)
    return [ScoredToken(ids[0], None), *map(ScoredToken, ids[1:], losses.tolist())]


@torch.no_grad()
def continue_tokens(gpt, ids, config):
    """Yield a `ScoredToken` for each new token after `ids`, up to `config.eot`. `config` is a `GenerationConfig`.

    The tokens are those of `generate`. All of them together with `ids` must fit in block_size.
    """
    draws = uniforms(config.seed, 1, config.max_new_tokens).to(gpt.transformer.wte.weight.device)  # (1, n)
    logits, cache = prefill(gpt, [ids], config.max_new_tokens)  # logits: (1, V)
    check_finite(logits)
    for i in range(config.max_new_tokens):
        new = next_ids(logits, draws[:, i], config.sampling)  # (1,)
        token = new.item()
        yield ScoredToken(token, (logits[0].logsumexp(0) - logits[0, token]).item())
        if token == config.eot or i + 1 == config.max_new_tokens:
            return
        logits = decode(gpt, cache, new)


@torch.no_grad()
def alternatives(gpt, ids, count=10):
    """The `count` most probable ids after `ids`, at most block_size: [(id, probability)], most probable first."""
    x = gpt.hidden(on_device(gpt, ids)[None])[:, -1]  # (1, C)
    probs = gpt.logits(x)[0].float().softmax(0)  # (V,)
    top = probs.topk(min(count, len(probs)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


@torch.no_grad()
def attention_maps(gpt, ids):
    """How much each token attends to itself and to earlier ones: (n_layer, nh, T, T) float32 on the CPU.

    Rows are queries and sum to 1. Training and generation never store these probabilities, so they are computed here
    once more, from the queries and keys of one forward pass over at most block_size ids.
    """
    maps = []

    def keep(module, args, qkv):  # qkv: (1, T, 3C)
        q, k, _ = split_heads(qkv.float(), gpt.config.n_head)  # (1, nh, T, hs) each
        scores = q[0] @ k[0].mT / math.sqrt(q.size(-1))  # (nh, T, T)
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device).triu(1)
        maps.append(scores.masked_fill(future, -math.inf).softmax(-1).cpu())

    hooks = [block.attn.c_attn.register_forward_hook(keep) for block in gpt.transformer.h]
    try:
        gpt.hidden(on_device(gpt, ids)[None])
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(maps)


@dataclass(frozen=True)
class Span:
    """A piece of a text and its surprisal in two models, in nats."""

    text: bytes
    first: float
    second: float


def compare_spans(first, second, text):
    """Cut `text` into the `Span`s between which both models have a boundary of tokens.

    With the same tokenizer these are the tokens; else a span is several tokens of one or both models, and its surprisal
    is their sum. `first` and `second` are pairs (gpt, tokenizer). The text follows end-of-text, so that each model
    scores all of its bytes. Raises `UserError` if it exceeds a model's block_size.
    """
    sums = [surprisal_until(gpt, tokenizer, text) for gpt, tokenizer in (first, second)]
    ends = sorted(sums[0].keys() & sums[1].keys())
    data = first[1].decode_bytes(first[1].encode(text))
    return [
        Span(data[start:end], *(total[end] - total[start] for total in sums)) for start, end in itertools.pairwise(ends)
    ]


def surprisal_until(gpt, tokenizer, text):
    """{number of bytes: surprisal of the text's tokens up to there} at every boundary of tokens, and 0 at byte 0."""
    ids = tokenizer.encode(text)
    if len(ids) >= gpt.config.block_size:
        raise UserError(f"the text has {len(ids)} tokens: expected fewer than block_size, {gpt.config.block_size}")
    tokens = score_tokens(gpt, [tokenizer.eot, *ids])[1:]
    ends = itertools.accumulate((len(tokenizer.decode_bytes([token.id])) for token in tokens), initial=0)
    return dict(zip(ends, itertools.accumulate((token.nats for token in tokens), initial=0.0), strict=True))


def on_device(gpt, ids):
    return torch.tensor(ids, device=gpt.transformer.wte.weight.device)
