"""Load a GPT to score text with, and prepare it for inference: eval mode, no gradients, packed weights for oneDNN."""

import contextlib
import copy
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from formats.checkpoint import best_of, describe_age, newest_checkpoint
from formats.read import read
from model import GPT
from system.errors import UserError
from tokens.tokenizer import Tokenizer, get_tokenizer


@dataclass(frozen=True)
class LoadedModel:
    gpt: GPT
    tokenizer: Tokenizer
    source: str  # describes the file in messages
    chat: bool  # whether it was fine-tuned on conversations


def open_model(name, best=False):
    """The `ModelFile` of `name`, see `formats.read`; its tensors are not read yet.

    Raises `UserError` if there is no such model, or if its tokenizer is unknown.
    """
    model_file = read(name, best)
    if model_file.tokenizer is None:
        raise UserError(
            f"{model_file.source}: its tokenizer is unknown, so it cannot read or write text; expected a model with the"
            " vocabulary of gpt2 or byte"
        )
    return model_file


def find_newest(best):
    """The path of the newest checkpoint under log/, or of its run's best; says which run that is and how old it is."""
    path = newest_checkpoint()
    if best:
        path = best_of(Path(path).parent)
    print(f"--model is not given: {describe_age(path)}", file=sys.stderr, flush=True)
    return path


def load(name, rt, best=False):
    """The model of `name` on the device of `rt`, with its tokenizer. Raises `UserError` as `open_model` does."""
    model_file = open_model(name, best)
    gpt, tokenizer = GPT.from_file(model_file).to(rt.device), get_tokenizer(model_file.tokenizer)
    return LoadedModel(gpt, tokenizer, model_file.source, model_file.chat)


@contextlib.contextmanager
def for_inference(model, rt):
    """Context manager that yields the `GPT` inside `model` in eval mode, without gradients, in the dtype of `rt`.

    `model` may be a compiled or distributed wrapper. The GPT inside runs uncompiled, so that new shapes trigger no
    compilation. On exit the model's mode is restored. On a CPU in bfloat16 a packed copy of the current weights is
    yielded.
    """
    gpt = unwrap(model)
    with torch.no_grad(), eval_mode(gpt):
        if rt.device.type == "cpu" and rt.dtype == torch.bfloat16:
            yield packed(gpt)
        else:
            with rt.autocast():
                yield gpt


def unwrap(model):
    """The `GPT` inside a compiled or distributed wrapper, or the model itself."""
    return next(module for module in model.modules() if isinstance(module, GPT))


@contextlib.contextmanager
def eval_mode(model):
    """Disable dropout inside; restore the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def packed(gpt):
    """A copy of `gpt` for a CPU whose linear layers hold bfloat16 weights in oneDNN's layout; the rest is shared.

    The products are those of autocast. A `KVCache` is float32 here, as no autocast is active: attention from a single
    token is several times faster in float32 than in bfloat16.
    """
    copied = copy.deepcopy(gpt, memo={id(p): p for p in gpt.parameters()})  # the modules, not the parameters
    copied.lm_head = PackedLinear(gpt.lm_head)
    for block in copied.transformer.h:
        block.attn.c_attn = PackedLinear(block.attn.c_attn)
        block.attn.c_proj = PackedLinear(block.attn.c_proj)
        block.mlp = PackedMLP(block.mlp)
    return copied


class PackedLinear(nn.Module):
    """A linear layer in bfloat16, optionally followed by GELU, whose weight is in the layout that oneDNN computes with.

    From a plain weight oneDNN makes that layout in each call, which for one token takes longer than the product.
    """

    def __init__(self, linear, gelu=False):
        super().__init__()
        self.gelu = gelu
        self.weight = linear.weight.detach().bfloat16()
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()
        # Private operators, also used by torch.compile; without them `forward` uses the public functions. They take
        # 24.6 instead of 38.4 ms per token of GPT-2 124M (two cores of an Intel Xeon with AMX, torch 2.13, November
        # 2026; to repeat, run `python bench.py generate --dtype bfloat16` with and without `pack = None` here).
        pack = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
        self.product = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if pack else None
        if self.product:
            self.weight = pack(self.weight, 1)  # for batches of one row; larger ones are no slower

    def forward(self, x):
        x = x.bfloat16()
        if self.product:
            return self.product(x, self.weight, self.bias, "gelu" if self.gelu else "none", [], "tanh")
        y = F.linear(x, self.weight, self.bias)
        return F.gelu(y, approximate="tanh") if self.gelu else y


class PackedMLP(nn.Module):
    """GPT-2's MLP with its GELU computed inside the first product."""

    def __init__(self, mlp):
        super().__init__()
        self.c_fc = PackedLinear(mlp.c_fc, gelu=True)
        self.c_proj = PackedLinear(mlp.c_proj)

    def forward(self, x):
        return self.c_proj(self.c_fc(x))
