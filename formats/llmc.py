"""The binary files of llm.c: models, debug states, the tokenizer and HellaSwag. A header of 256 int32, then the data.

    gpt2_124M.bin              the weights, float32 (version 3) or bfloat16 (version 5)
    gpt2_124M_debug_state.bin  one batch with its logits, loss and gradients, to test a port against
    gpt2_tokenizer.bin         the bytes of each token
    hellaswag_val.bin          multiple-choice examples as token ids

Layouts: llm.c, train_gpt2.py and dev/data/data_common.py. All numbers are little-endian. Token shards, the fifth kind,
are read and written by `tokens.shards`.
"""

import math
import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from formats.model_file import (
    BLOCK_SHAPES,
    SHAPE_FIELDS,
    WTE,
    ModelFile,
    as_bytes,
    checked_shape,
    count_values,
    parameter_shapes,
)
from system.errors import UserError
from system.files import AtomicFile
from tokens.shards import BIN_HEADER, BIN_MAGIC
from tokens.tokenizer import tokenizer_of_vocab

MODEL, DEBUG_STATE, TOKENIZER, EVAL = 20240326, 20240327, 20240328, 20240522  # the magic number of each kind
KINDS = {
    MODEL: "model",
    DEBUG_STATE: "debug state",
    TOKENIZER: "tokenizer",
    EVAL: "multiple-choice evaluation",
    BIN_MAGIC: "token shard",
}
MODEL_VERSIONS = {torch.float32: 3, torch.bfloat16: 5}
DEBUG_STATE_VERSION, TOKENIZER_VERSION, EVAL_VERSION = 2, 2, 1
HEADER_BYTES = 4 * BIN_HEADER
VOCAB_MULTIPLE = 128  # llm.c pads the token embedding with rows of zeros to a multiple of this
START_OF_EXAMPLE = 65535


@dataclass(frozen=True)
class DebugState:
    """A batch and what a model computes from it, in float32."""

    inputs: torch.Tensor  # (B, T)
    targets: torch.Tensor  # (B, T)
    logits: torch.Tensor  # (B, T, vocab_size)
    loss: torch.Tensor  # (), the mean over the batch in nats
    grads: dict[str, torch.Tensor]  # of each parameter by name, the embedding's without padding


# ---- models ----


def matches(path, start):
    return magic_of(start) is not None


def magic_of(start):
    """The magic number at the start of a file of llm.c, None for other files."""
    magic = int.from_bytes(start[:4], "little")
    return magic if magic in KINDS else None


def write_model(path, shape, tensors, dtype):
    """Write a model's `shape` and `tensors`, as in a `ModelFile`, in `dtype`: torch.float32 or torch.bfloat16."""
    padded = padded_vocab_size(shape["vocab_size"])
    with AtomicFile(path) as f:
        write_header(f, MODEL, MODEL_VERSIONS[dtype], *(shape[name] for name in SHAPE_FIELDS), padded)
        write_tensors(f, shape, tensors, dtype)


def read(path):
    """The `ModelFile` of a model: its tensors are views of a memory map.

    Raises `UserError` if the header is not that of a GPT-2 or does not match the size of the file.
    """
    header = read_header(path, MODEL, tuple(MODEL_VERSIONS.values()))
    dtype = next(dtype for dtype, version in MODEL_VERSIONS.items() if version == header[1])
    shape = checked_shape(dict(zip(SHAPE_FIELDS, header[2:7], strict=True)), path)
    padded = header[7]
    if padded < shape["vocab_size"]:
        raise UserError(f"{path}: padded vocabulary of {padded}, expected at least {shape['vocab_size']}")
    count = count_values(shape, padded)
    check_size(path, HEADER_BYTES + count * dtype.itemsize)
    source = f"{path} (llm.c, {str(dtype).removeprefix('torch.')})"

    def load():
        return split(map_values(path, dtype, count), shape, padded)

    return ModelFile(shape, tokenizer_of_vocab(shape["vocab_size"]), source, load)


# ---- debug states ----


def write_debug_state(path, shape, state):
    """Write the `DebugState` of a model of this shape."""
    with AtomicFile(path) as f:
        write_header(f, DEBUG_STATE, DEBUG_STATE_VERSION, *state.inputs.shape)
        for part in (state.inputs.int(), state.targets.int(), state.logits, state.loss):
            f.write(as_bytes(part))
        write_tensors(f, shape, state.grads, torch.float32)


def is_debug_state(path):
    with open(path, "rb") as f:
        return magic_of(f.read(4)) == DEBUG_STATE


def read_debug_state(path, shape):
    """The `DebugState` in a file. It must be of a model of this shape, which the file does not say."""
    B, T = read_header(path, DEBUG_STATE, (DEBUG_STATE_VERSION,))[2:4]
    V, block_size, padded = shape["vocab_size"], shape["block_size"], padded_vocab_size(shape["vocab_size"])
    if not (B > 0 and 0 < T <= block_size):
        raise UserError(f"{path}: a batch of {B}×{T}, expected at least 1×1 and at most {block_size} tokens a row")
    sizes = [B * T, B * T, B * T * V, 1, count_values(shape, padded)]
    check_size(path, HEADER_BYTES + 4 * sum(sizes))
    inputs, targets = map_values(path, torch.int32, 2 * B * T).long().view(2, B, T)
    low, high = min(inputs.min(), targets.min()), max(inputs.max(), targets.max())
    if low < 0 or high >= V:
        raise UserError(f"{path} holds ids from {low} to {high}, expected 0 to {V - 1} for this model")
    _, _, logits, loss, grads = map_values(path, torch.float32, sum(sizes)).split(sizes)
    return DebugState(inputs, targets, logits.view(B, T, V), loss.view(()), split(grads, shape, padded))


# ---- tokenizer and evaluation ----


def write_tokenizer(path, tokenizer):
    """Write the bytes of each token of a `tokens.tokenizer.Tokenizer`."""
    with AtomicFile(path) as f:
        write_header(f, TOKENIZER, TOKENIZER_VERSION, tokenizer.vocab_size, tokenizer.eot)
        for i in range(tokenizer.vocab_size):
            token = tokenizer.decode_bytes([i])
            f.write(bytes((len(token),)) + token)  # the length is one byte: the longest token of GPT-2 has 128


def write_eval(path, examples):
    """Write multiple-choice examples, each (label, context ids, [ids of each ending]). Returns their number."""
    streams = [encode_example(path, index, *example) for index, example in enumerate(examples)]
    if not streams:
        raise UserError(f"{path}: no examples to write")
    with AtomicFile(path) as f:
        write_header(f, EVAL, EVAL_VERSION, len(streams), max(stream[1] for stream in streams))
        f.write(np.concatenate([np.array(stream, dtype="<u2") for stream in streams]).data)
    return len(streams)


def encode_example(path, index, label, context, endings):
    """One example as numbers: start, its length in bytes, index, label, number of endings, then rows with lengths."""
    rows = [value for row in (context, *endings) for value in (len(row), *row)]
    stream = [START_OF_EXAMPLE, 2 * (5 + len(rows)), index, label, len(endings), *rows]
    if not 0 <= label < len(endings):
        raise UserError(f"{path}: example {index} has label {label}, expected the number of one of its endings")
    if max(stream[1:]) >= START_OF_EXAMPLE:
        raise UserError(f"{path}: example {index} does not fit the format: at most 65,534 examples, bytes or ids")
    return stream


# ---- headers and tensors ----


def write_header(f, *values):
    header = np.zeros(BIN_HEADER, dtype="<i4")
    header[: len(values)] = values
    f.write(header.data)


def read_header(path, magic, versions):
    """The header, a list of ints. Raises `UserError` unless it begins with `magic` and one of `versions`."""
    header = np.fromfile(path, dtype="<i4", count=BIN_HEADER).tolist()
    found = KINDS.get(header[0]) if header else None
    if found is None:
        raise UserError(f"{path} is not a file of llm.c, expected a {KINDS[magic]}")
    if found != KINDS[magic]:
        raise UserError(f"{path} is a {found} of llm.c, expected a {KINDS[magic]}")
    if len(header) < BIN_HEADER:
        raise UserError(f"{path} is truncated: {4 * len(header)} bytes, the header has {HEADER_BYTES}; copy it again")
    if header[1] not in versions:
        known = " or ".join(map(str, versions))
        raise UserError(f"{path} has version {header[1]}, expected {known}; write it again with a current llm.c")
    return header


def check_size(path, expected):
    """Raise `UserError` unless the file has as many bytes as its header says."""
    size = os.path.getsize(path)
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(
            f"{path} is {what}, or its header is wrong: {size:,} bytes, expected {expected:,}; write it again"
        )


def padded_vocab_size(vocab_size):
    return math.ceil(vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def map_values(path, dtype, count):
    """The `count` numbers (count,) after the header, memory-mapped; changes stay in this process."""
    raw = np.memmap(path, dtype=np.uint8, mode="c", offset=HEADER_BYTES, shape=(count * dtype.itemsize,))
    return torch.from_numpy(raw).view(dtype)


def split(flat, shape, padded):
    """The numbers of all tensors (n,) → {parameter name: tensor}; the padding of the embedding is removed."""
    shapes = dict(parameter_shapes(shape))
    shapes[WTE] = (padded, shape["n_embd"])
    names = file_order(shape["n_layer"])
    parts = flat.split([math.prod(shapes[name]) for name in names])
    tensors = {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
    return tensors | {WTE: tensors[WTE][: shape["vocab_size"]]}


def write_tensors(f, shape, tensors, dtype):
    """Write {parameter name: tensor} in the file's order; the embedding is padded with rows of zeros."""
    padding = padded_vocab_size(shape["vocab_size"]) - shape["vocab_size"]
    for name in file_order(shape["n_layer"]):
        tensor = tensors[name].to(dtype)
        f.write(as_bytes(F.pad(tensor, (0, 0, 0, padding)) if name == WTE else tensor))


def file_order(n_layer):
    """Parameter names in the file's order: each tensor of a block follows over all layers before the next."""
    blocks = (f"transformer.h.{layer}.{name}" for name in BLOCK_SHAPES for layer in range(n_layer))
    return (WTE, "transformer.wpe.weight", *blocks, "transformer.ln_f.weight", "transformer.ln_f.bias")
