"""Choosing the next token id from logits: temperature, top-k and top-p, with one random generator per row."""

import math
from dataclasses import dataclass

import torch

from system.errors import UserError

LOWEST_TEMPERATURE = 1e-4  # by less, logits would be divided to infinity; 0 is greedy


@dataclass(frozen=True)
class Sampling:
    """How to draw an id from logits. Raises `UserError` if a value is out of range."""

    temperature: float = 1.0  # divides the logits; 0: always the most probable id (greedy)
    top_k: int = 0  # keep the k most probable ids; 0: all
    top_p: float = 1.0  # of those, keep the fewest whose probability reaches p; 1: all

    def __post_init__(self):
        if self.temperature != 0 and not LOWEST_TEMPERATURE <= self.temperature < math.inf:
            raise UserError(f"temperature = {self.temperature}: expected 0 (greedy), or {LOWEST_TEMPERATURE} and more")
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k}: expected 0 (all) or more")
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: expected 0 ≤ top_p ≤ 1")


GREEDY = Sampling(temperature=0.0)
STYLES = {
    "focused": Sampling(temperature=0.7, top_k=40, top_p=0.9),  # clear, stays on the subject
    "creative": Sampling(temperature=1.0, top_k=50),  # like a blog or a story
    "wild": Sampling(temperature=1.2),  # any token is possible
}


def next_ids(logits, u, sampling):
    """Choose one id per row by inverse transform sampling: logits (B, V), u (B,) uniform in [0, 1) → ids (B,).

    The chosen id is the first whose cumulative probability exceeds u. The most probable id is always kept. Top-p is
    from Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    ids = None  # of the kept logits; None: the column is the id
    V = logits.size(-1)
    if sampling.top_k > 0 or sampling.top_p < 1:
        k = min(sampling.top_k, V) if sampling.top_k > 0 else V
        logits, ids = logits.topk(k)  # most probable first
    probs = torch.softmax(logits / sampling.temperature, -1)  # (B, V) or (B, k)
    cumulative = probs.cumsum(-1)
    if sampling.top_p < 1:
        before = cumulative - probs  # probability of all more probable ids
        before[:, 0] = -1  # always keeps the first
        cumulative = probs.masked_fill(before >= sampling.top_p, 0).cumsum(-1)
    # u is at most 1 - 2^-24, so the threshold stays below the total even after rounding.
    threshold = u[:, None] * cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, threshold, right=True)  # (B, 1)
    if ids is not None:
        choice = ids.gather(1, choice)
    return choice[:, 0]


def uniforms(seed, B, n):
    """Random numbers in [0, 1), (B, n). Row i depends only on (seed, i); torch's global generator is not used."""
    rows = []
    for row in range(B):
        generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % 2**63)
        rows.append(torch.rand(n, generator=generator))
    return torch.stack(rows)
