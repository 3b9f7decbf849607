"""The loss of a model on text: every token scored once, in windows that slide over each document.

A window is at most T input tokens, and its last `stride` of them predict tokens that no earlier window predicted. So
each scored token sees at least T - stride + 1 tokens before it, where its document has them. `stride` = T gives blocks
without overlap but for one token, as in training and as EleutherAI's harness computes rolling log-likelihoods; a
smaller stride gives more context and a lower loss, and takes T / stride times as long.

Shapes: N documents, W windows, B windows per batch, T tokens per window, C = n_embd.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from inference.eval_model import for_inference
from inference.token_losses import default_batch_tokens, group_by_length, token_losses
from ops.cross_entropy import IGNORE
from system.errors import UserError
from tokens.tokenizer import replace_surrogates


@dataclass(frozen=True)
class Windowing:
    """How documents are cut into windows. Raises `UserError` if a value is out of range."""

    T: int  # input tokens of a window, at most
    stride: int  # tokens that each window after the first scores
    begin_with_eot: bool = True  # put end-of-text before each document; otherwise its first token is not scored
    batch_tokens: int | None = None  # tokens per forward pass, at most; None: by the device

    def __post_init__(self):
        if not 1 <= self.stride <= self.T:
            raise UserError(f"stride = {self.stride}: expected 1 to T = {self.T}; half of T is usual")


class Window(NamedTuple):
    document: int
    start: int  # the input tokens are ids[start:stop] of the document, their targets ids[start + 1 : stop + 1]
    stop: int
    scored: int  # the last `scored` targets count

    def inputs(self):
        """The number of input tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class Totals:
    """What was scored in each document, float64 (N,) each. The same on every rank."""

    loss: np.ndarray  # sum over the tokens, in nats
    tokens: np.ndarray
    bytes: np.ndarray  # of UTF-8, of the scored tokens
    words: np.ndarray  # between white space


class Estimate(NamedTuple):
    """A ratio of sums over documents, and half the width of its 95% interval (NaN for fewer than two documents)."""

    value: float
    margin: float

    def exp(self):
        """(value, low, high) of the exponential."""
        return tuple(math.exp(min(x, 700.0)) for x in (self.value, self.value - self.margin, self.value + self.margin))


def ratio(numerators, denominators):
    """The `Estimate` of Σ numerators / Σ denominators over documents, (N,) each.

    The standard error is the ratio estimator's, with documents as the sampled units: √(n/(n-1) · Σ (y - R·x)²) / Σ x
    (Cochran 1977, "Sampling Techniques", section 6.4). It needs no random numbers, unlike a bootstrap.
    """
    total, n = denominators.sum(), len(denominators)
    value = numerators.sum() / total
    if n < 2:
        return Estimate(value, math.nan)
    squares = ((numerators - value * denominators) ** 2).sum()
    return Estimate(value, 1.96 * math.sqrt(n / (n - 1) * squares) / total)


def score(model, tokenizer, texts, windowing, rt, progress=False):
    """Compute the `Totals` of texts, (N,). A collective: every rank must call it with the same texts.

    `model` is a GPT or a compiled or distributed wrapper; it and torch's random state do not change. Batches do not
    depend on the number of ranks, and neither does any bit of the totals. Another `batch_tokens` changes only the
    rounding. Raises `UserError` if there is no token to score.
    """
    documents = [encode(text, tokenizer, windowing.begin_with_eot) for text in texts]
    windows = [
        Window(i, *span) for i, ids in enumerate(documents) for span in spans(len(ids), windowing.T, windowing.stride)
    ]
    if not windows:
        raise UserError("no token to score: without end-of-text before it, a document needs at least two tokens")
    losses = window_losses(model, documents, windows, windowing.batch_tokens, rt, progress)
    owner = np.array([window.document for window in windows])
    loss = np.bincount(owner, weights=losses, minlength=len(texts))
    tokens = np.array([len(ids) - 1 for ids in documents], dtype=np.float64)
    return Totals(loss, tokens, count_bytes(texts, documents, tokenizer, windowing), count_words(texts))


def encode(text, tokenizer, begin_with_eot):
    """The ids of a document, uint16 (n,)."""
    ids = tokenizer.encode_array(text).astype(np.uint16)
    return np.concatenate([[tokenizer.eot], ids]).astype(np.uint16) if begin_with_eot else ids


def spans(n, T, stride):
    """Yield (start, stop, scored) of the windows over a document of n ids, which score each id but the first once.

    The first window scores all its targets. Later ones have T inputs and score `stride` targets, the last one the rest.
    """
    stop = min(T, n - 1)
    if stop > 0:
        yield 0, stop, stop
    while stop < n - 1:
        scored = min(stride, n - 1 - stop)
        stop += scored
        yield stop - T, stop, scored


def window_losses(model, documents, windows, batch_tokens, rt, progress):
    """The summed loss of each window's scored tokens, (W,) in NumPy."""
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(rt.device)
    groups = group_by_length([window.inputs() for window in windows], batch_tokens)[rt.rank :: rt.world_size]
    losses = torch.zeros(len(windows), device=rt.device)
    total = sum(windows[i].scored for group in groups for i in group)
    with for_inference(model, rt) as gpt, tqdm(total=total, unit="tok", unit_scale=True, disable=not progress) as bar:
        for group in groups:
            batch = [windows[i] for i in group]
            losses[torch.tensor(group, device=rt.device)] = score_batch(gpt, documents, batch, rt)
            bar.update(sum(window.scored for window in batch))
    return rt.sum(losses).cpu().numpy()  # each window has its loss on one rank and zeros on the others


def score_batch(gpt, documents, windows, rt):
    """Summed losses of the windows' scored tokens, (B,). Shorter windows are padded on the right."""
    B, T = len(windows), max(window.inputs() for window in windows)
    ids, targets = np.zeros((B, T), np.int64), np.full((B, T), IGNORE, np.int64)
    for row, (document, start, stop, scored) in enumerate(windows):
        n = stop - start
        ids[row, :n] = documents[document][start:stop]
        targets[row, n - scored : n] = documents[document][stop + 1 - scored : stop + 1]
    positions = np.flatnonzero(targets != IGNORE)  # (M,) as indices into B·T
    targets = rt.to_device(torch.from_numpy(targets.reshape(-1)[positions]))  # (M,)
    positions = rt.to_device(torch.from_numpy(positions))
    x = gpt.hidden(rt.to_device(torch.from_numpy(ids))).flatten(0, 1)[positions]  # (M, C)
    losses = torch.zeros(B * T, device=rt.device)
    losses[positions] = token_losses(gpt, x, targets[:, None])[:, 0]
    return losses.view(B, T).sum(1)


def count_bytes(texts, documents, tokenizer, windowing):
    """The bytes of each text's scored tokens: all, or without end-of-text all but the first token's."""
    sizes = [len(replace_surrogates(text).encode()) for text in texts]
    if not windowing.begin_with_eot:
        firsts = (len(tokenizer.decode_bytes(ids[:1].tolist())) for ids in documents)
        sizes = [size - first for size, first in zip(sizes, firsts, strict=True)]
    return np.array(sizes, dtype=np.float64)


def count_words(texts):
    return np.array([len(text.split()) for text in texts], dtype=np.float64)
