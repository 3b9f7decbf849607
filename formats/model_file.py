"""What every model format is read into and written from: the shape and the tensors of a GPT-2, as plain data.

Tensors have GPT-2's parameter names on Hugging Face and the orientation of `nn.Linear`, (outputs, inputs). The head is
tied to the token embedding, so it is not stored a second time; the embedding has one row per token id, without padding.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from system.boundary import check_declared_size, foreign, show
from system.errors import UserError

SHAPE_FIELDS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
WTE = "transformer.wte.weight"  # the token embedding
HEAD = "lm_head.weight"  # tied to it
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of a file's tensors
BLOCK_SHAPES = {  # the parameters of one block; dimensions in units of n_embd
    "ln_1.weight": (1,),
    "ln_1.bias": (1,),
    "attn.c_attn.weight": (3, 1),
    "attn.c_attn.bias": (3,),
    "attn.c_proj.weight": (1, 1),
    "attn.c_proj.bias": (1,),
    "ln_2.weight": (1,),
    "ln_2.bias": (1,),
    "mlp.c_fc.weight": (4, 1),
    "mlp.c_fc.bias": (4,),
    "mlp.c_proj.weight": (1, 4),
    "mlp.c_proj.bias": (1,),
}


@dataclass(frozen=True)
class ModelFile:
    """A model on disk. Its shape is known; its tensors are read when `tensors()` is called."""

    shape: dict[str, int]  # a positive integer for each of SHAPE_FIELDS
    tokenizer: str | None  # None if the file does not say
    source: str  # describes the file in messages
    load: Callable[[], dict[str, torch.Tensor]]  # reads the tensors, which may include the head
    chat: bool = False  # whether the file says that it was fine-tuned on conversations in the format of tokens/chat.py
    log_dir: str | None = None  # of a checkpoint: its folder, which is the run's unless the file was moved
    step: int | None = None  # of a checkpoint: the updates that the run had made

    def tensors(self):
        """Read the tensors: {parameter name: tensor}, in the file's dtype, one for each of `parameter_shapes`.

        They are not kept, so that a model built from them is the only copy in memory. Raises `UserError` if the file is
        damaged or the tensors do not match the shape.
        """
        with foreign(self.source, "a GPT-2"):
            tensors = without_head(self.load(), self.source)
            check_tensors(tensors, self.shape, self.source)
        return tensors


def parameter_shapes(shape):
    """Yield (name, shape) of each parameter of a GPT-2, in the order of `GPT.named_parameters()`.

    A generator, because the `n_layer` of a damaged file may be huge: the reader can stop at the first missing name.
    """
    C = shape["n_embd"]
    yield WTE, (shape["vocab_size"], C)
    yield "transformer.wpe.weight", (shape["block_size"], C)
    for layer in range(shape["n_layer"]):
        for name, multiples in BLOCK_SHAPES.items():
            yield f"transformer.h.{layer}.{name}", tuple(multiple * C for multiple in multiples)
    yield "transformer.ln_f.weight", (C,)
    yield "transformer.ln_f.bias", (C,)


def count_values(shape, rows):
    """How many numbers the parameters of a GPT-2 have, with `rows` in the token embedding.

    Computed from integers alone, so that a damaged shape allocates nothing.
    """
    C = shape["n_embd"]
    return (rows + shape["block_size"] + 2) * C + shape["n_layer"] * (12 * C + 13) * C


def checked_shape(values, source):
    """The SHAPE_FIELDS of a dict read from `source`. Raises `UserError` unless each is a positive integer (int32)."""
    for name in SHAPE_FIELDS:
        value = values.get(name)
        if type(value) is not int or not 1 <= value < 2**31:
            raise UserError(f"{source}: {name} = {show(value)} in its config, expected a positive integer below 2^31")
    return {name: values[name] for name in SHAPE_FIELDS}


def check_shape_fits(shape, size, source):
    """Raise `UserError` if the parameters of a GPT-2 of this shape cannot be in files of `size` bytes in all.

    Counts a byte for each: half precision takes two, but nanoGPT may leave out the biases.
    """
    check_declared_size(source, count_values(shape, shape["vocab_size"]), size)


def check_tensors(tensors, shape, source):
    """Raise `UserError` unless `tensors` are the parameters of a GPT-2 of this shape.

    Takes at most len(tensors) + 1 steps, whatever `n_layer` is.
    """
    names = set()
    for name, expected in parameter_shapes(shape):
        if name not in tensors:
            raise UserError(f"{source} has no tensor {name}")
        found = tuple(tensors[name].shape)
        if found != expected:
            raise UserError(f"{source}: {name} has shape {found}, expected {expected} by its config")
        if tensors[name].dtype not in DTYPES:
            raise UserError(f"{source}: {name} is {tensors[name].dtype}, expected one of {', '.join(map(str, DTYPES))}")
        names.add(name)
    unknown = sorted(tensors.keys() - names)
    if unknown:
        raise UserError(f"{source} has a tensor {unknown[0]}, which is no parameter of a GPT-2 of its shape")


def without_head(tensors, source):
    """The tensors without `lm_head.weight`. Raises `UserError` if it differs from the embedding it is tied to."""
    head = tensors.get(HEAD)
    if head is not None and not torch.equal(head, tensors.get(WTE, head)):
        raise UserError(f"{source}: {HEAD} differs from {WTE}; in a GPT-2 they are the same tensor")
    return {name: tensor for name, tensor in tensors.items() if name != HEAD}


def without_padding(tensors, vocab_size):
    """The tensors with only the first `vocab_size` rows of the embedding and the head."""
    padded = (WTE, HEAD)
    return {name: t[:vocab_size] if name in padded and t.dim() == 2 else t for name, t in tensors.items()}


def with_gpt2_names(tensors):
    """Rename tensors to GPT-2's parameter names.

    Removes the prefixes that DDP and torch.compile add, adds a missing `transformer.`, and drops the causal masks that
    older code saved among the weights.
    """
    renamed = {}
    for name, tensor in tensors.items():
        bare = re.sub(r"^(module\.|transformer\.)+", "", str(name).replace("_orig_mod.", ""))
        if not bare.endswith((".attn.bias", ".attn.masked_bias")):
            renamed[bare if bare == HEAD else f"transformer.{bare}"] = tensor
    return renamed


def is_tensor_dict(value):
    """Whether `value` is a non-empty {name: tensor}."""
    return isinstance(value, dict) and value != {} and all(isinstance(v, torch.Tensor) for v in value.values())


def as_bytes(tensor):
    """The bytes of a tensor, row by row. NumPy has no bfloat16, so they are viewed as uint8 first."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
