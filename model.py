"""GPT-2: the model, its loss, its initialisation and its key-value cache. Read it from top to bottom.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Parameter names are those of GPT-2 on
Hugging Face. Shapes in comments: B rows, T positions, C = n_embd, nh heads of size hs = C / nh, V ids, S cached keys.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from formats.model_file import SHAPE_FIELDS, WTE
from formats.read import read
from ops.attention import cached_attention, causal_attention, merge_heads, split_heads
from ops.cross_entropy import IGNORE, head_loss
from ops.linear import linear
from system.errors import UserError

VOCAB_MULTIPLE = 128  # matrix units are fastest at multiples of this; 50257 is padded to 50304


@dataclass(frozen=True)
class GPTConfig:
    block_size: int = 1024  # longest context in tokens
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0

    def __post_init__(self):
        for name in SHAPE_FIELDS:
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd = {self.n_embd} is not divisible by n_head = {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout = {self.dropout}: expected 0 ≤ dropout < 1")

    @classmethod
    def from_file(cls, model_file, dropout=0.0):
        """The config of a `ModelFile`. Raises a `UserError` that names the file if its shape is impossible."""
        try:
            return cls(**model_file.shape, dropout=dropout)
        except UserError as error:
            raise UserError(f"{model_file.source}: {error}") from error

    @property
    def shape(self):
        """The five integers of a `ModelFile`'s shape."""
        return {name: getattr(self, name) for name in SHAPE_FIELDS}

    @property
    def padded_vocab_size(self):
        """Rows of the embedding. Those from `vocab_size` on are padding: they never reach logits, losses or files."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class Linear(nn.Linear):
    product = staticmethod(linear)  # benchmarks replace it by plainer functions, like the two below

    def forward(self, x):
        return self.product(x, self.weight, self.bias)


class CausalSelfAttention(nn.Module):
    attention = staticmethod(causal_attention)

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)  # query, key and value of all heads at once
        self.c_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, layer=None):
        qkv = self.c_attn(x)  # (B, T, 3C)
        if cache is None:
            y = self.attention(qkv, self.n_head, self.dropout if self.training else 0.0)  # (B, T, C)
        else:
            q, k, v = split_heads(qkv, self.n_head)  # (B, nh, T, hs) each
            k, v, visible = cache.append(layer, k, v)  # (B, nh, S, hs) each; visible: see `Cache`
            y = merge_heads(cached_attention(q.to(k.dtype), k, v, visible))
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = F.gelu(self.c_fc(x), approximate="tanh")  # (B, T, 4C); GPT-2 was trained with the tanh form
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, cache=None, layer=None):
        x = x + self.attn(self.ln_1(x), cache, layer)
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):
    head_loss = staticmethod(head_loss)

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False  # recompute blocks in the backward pass: less memory, same loss
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.padded_vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = Linear(config.n_embd, config.padded_vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight  # tied: one tensor embeds ids and computes logits
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Initialise as GPT-2 does (section 2.3 of the paper): weights from N(0, 0.02), biases 0, LayerNorm weights 1.

        The 2·n_layer projections into the residual stream are scaled by (2·n_layer)^-0.5, so that the stream's variance
        does not grow with depth. OpenAI draws `wpe` from N(0, 0.01); this uses 0.02, as build-nanogpt does.
        """
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer))
            elif name == WTE:
                p[: self.config.vocab_size].normal_(0.0, 0.02)  # so that the padding does not change the random numbers
                p[self.config.vocab_size :].zero_()
            elif p.dim() >= 2:
                p.normal_(0.0, 0.02)
            elif name.endswith("bias"):
                p.zero_()  # LayerNorm weights stay 1

    @classmethod
    def from_pretrained(cls, name, dropout=0.0):
        """Build the GPT of `name`: gpt2 … gpt2-xl, a folder or a file in any format of `formats.read`.

        `GPT.from_pretrained("gpt2")` loads OpenAI's weights: on the CPU, in float32, in eval mode. See `from_file`.
        """
        return cls.from_file(read(name), dropout)

    @classmethod
    def from_file(cls, model_file, dropout=0.0):
        """Build a GPT from a `ModelFile`: on the CPU, in float32, in eval mode. Draws no random numbers.

        Raises `UserError` if the file is damaged or its tensors are not those of a GPT-2.
        """
        config = GPTConfig.from_file(model_file, dropout)
        tensors = model_file.tensors()
        with torch.device("meta"):
            model = cls(config)  # allocates no memory and draws no random numbers
        model.to_empty(device="cpu")
        model.lm_head.weight = model.transformer.wte.weight  # to_empty separates the tied parameters
        with torch.no_grad():
            model.transformer.wte.weight[config.vocab_size :] = 0
            for name, parameter in model.to_tensors().items():
                parameter.copy_(tensors[name])
        return model.eval()

    def to_tensors(self):
        """The parameters as the writers in `formats` take them: {name: tensor}, the embedding without padding.

        The tensors are views: changing them changes the model.
        """
        tensors = {name: p.detach() for name, p in self.named_parameters()}
        tensors[WTE] = tensors[WTE][: self.config.vocab_size]
        return tensors

    def hidden(self, idx, cache=None):
        """Ids (B, T) → final hidden states (B, T, C). With a `Cache`, idx continues the tokens already cached."""
        T = idx.size(1)
        if cache is None:
            pos = torch.arange(T, device=idx.device)  # (T,)
        else:
            pos = cache.start(T)  # (T,) or (B, T)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.transformer.h):
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x, cache, layer)
        return self.transformer.ln_f(x)

    def logits(self, x):
        """Hidden states (…, C) → logits (…, vocab_size), without those of the padding."""
        return self.lm_head(x)[..., : self.config.vocab_size]

    def forward(self, idx, targets=None, reduction="mean"):
        """Ids (B, T) → logits (B, T, vocab_size); with targets (B, T) → only the cross-entropy in nats.

        A target of -1 is ignored. The loss is the mean over the other targets (NaN if there are none), or with
        `reduction="none"` a value for each position (B, T), 0 where the target is ignored. The logits are not returned
        with the loss: they are the largest tensor and can be freed early.
        """
        if idx.size(1) > self.config.block_size:
            raise UserError(f"{idx.size(1)} tokens: expected at most the model's block_size, {self.config.block_size}")
        x = self.hidden(idx)
        if targets is None:
            return self.logits(x)
        rows = x.flatten(0, 1)  # (B·T, C)
        losses = self.head_loss(rows, self.lm_head.weight, targets.flatten(), self.config.vocab_size)  # (B·T,)
        if reduction == "none":
            return losses.view_as(targets)
        return losses.sum() / (targets != IGNORE).sum()

    def optimizer_groups(self, weight_decay):
        """Parameter groups for an optimizer: matrices and embeddings decay, biases and LayerNorm weights do not."""
        params = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]


class Cache(Protocol):
    """How the new tokens of `GPT.hidden(idx, cache)` get their positions and the earlier tokens that they attend to.

    `hidden` calls `start` once, then `append` once per layer. Shapes: B rows, T new tokens, S keys in all.
    """

    def start(self, T):
        """Begin a forward pass over T new tokens per row. Returns their positions, (T,) or (B, T)."""

    def append(self, layer, k, v):
        """Take the new tokens' keys and values of one layer, (B, nh, T, hs) each. Returns (keys, values, visible).

        Keys and values are those of all tokens, (B, nh, S, hs) each. `visible` is a boolean mask, broadcastable to
        (B, nh, T, S): the keys that each new token attends to. None means causal, and needs T = 1 or T = S.
        """


class KVCache:
    """A `Cache` that stores the keys and values of every layer for B rows, so that each token is computed only once.

    The memory is allocated in advance. `append` writes the new tokens into the next columns, the same ones in every
    row, so shorter prompts are padded on the left with `padding` (B,) columns that the mask hides.
    """

    def __init__(self, config, B, max_len, device, dtype, *, padding=None):
        """`max_len` is the number of columns. `padding` may be None if no row is padded."""
        shape = (config.n_layer, B, config.n_head, max_len, config.n_embd // config.n_head)
        self.k = torch.zeros(shape, device=device, dtype=dtype)  # (n_layer, B, nh, max_len, hs)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.padding = padding
        self.length = 0  # columns in use
        self.new = slice(0, 0)  # columns of the current pass's tokens
        self.visible = None  # their mask, (T, S) or (B, 1, T, S); None: causal

    def start(self, T):
        self.new = slice(self.length, self.length + T)
        self.length += T
        keys = torch.arange(self.length, device=self.k.device)  # (S,)
        columns = keys[self.new]
        causal = keys <= columns[:, None]  # (T, S)
        if self.padding is None:
            self.visible = None if T in (1, self.length) else causal
            return columns
        first = self.padding[:, None, None, None]
        own = keys == columns[:, None]  # padding attends to itself: a softmax over no keys would be NaN
        self.visible = causal & (keys >= first) | own  # (B, 1, T, S)
        return (columns - self.padding[:, None]).clamp(min=0)

    def keep(self, rows):
        """Keep only these rows, a list of row numbers."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]
        if self.padding is not None:
            self.padding = self.padding[rows]

    def append(self, layer, k, v):
        self.k[layer, :, :, self.new] = k
        self.v[layer, :, :, self.new] = v
        return self.k[layer, :, :, : self.length], self.v[layer, :, :, : self.length], self.visible
