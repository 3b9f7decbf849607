"""The binary files of llm.c: models, debug states, the tokenizer and HellaSwag, each 256 int32 of header, then data.

    gpt2_124M.bin              the weights, float32 (version 3) or bfloat16 (version 5)
    gpt2_124M_debug_state.bin  one batch with its logits, loss and gradients: what a port is tested against
    gpt2_tokenizer.bin         the bytes of each token
    hellaswag_val.bin          multiple-choice examples as token ids

Layouts: llm.c, train_gpt2.py and dev/data/data_common.py. All numbers are little-endian.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from model import GPT, GPTConfig
from system.errors import UserError
from system.files import AtomicFile

HEADER = 256  # int32 values
MODEL, DEBUG_STATE, TOKENIZER, EVAL, SHARD = 20240326, 20240327, 20240328, 20240522, 20240520
KINDS = {
    MODEL: "model",
    DEBUG_STATE: "debug state",
    TOKENIZER: "tokenizer",
    EVAL: "multiple-choice evaluation",
    SHARD: "token shard",
}
DTYPE_OF_VERSION = {3: torch.float32, 5: torch.bfloat16}
DEBUG_STATE_VERSION, TOKENIZER_VERSION, EVAL_VERSION = 2, 2, 1
START_OF_EXAMPLE = 65535
BLOCK_TENSORS = (  # each over all layers before the next
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)
WTE = "transformer.wte.weight"


@dataclass(frozen=True)
class DebugState:
    """A batch and all that a model makes of it."""

    inputs: torch.Tensor  # (B, T)
    targets: torch.Tensor  # (B, T)
    logits: torch.Tensor  # (B, T, vocab_size)
    loss: torch.Tensor  # (), the mean in nats
    grads: dict[str, torch.Tensor]  # by parameter's name, the vocabulary without padding


def magic_of(start):
    """The magic number with which these bytes begin, or None where they aren't llm.c's."""
    magic = int.from_bytes(start[:4], "little")
    return magic if magic in KINDS else None


def write_model(path, model, dtype):
    """Write the weights of `model` in `dtype`, torch.float32 or torch.bfloat16."""
    config = model.config
    version = next(version for version, known in DTYPE_OF_VERSION.items() if known == dtype)
    shape = (config.block_size, config.vocab_size, config.n_layer, config.n_head, config.n_embd)
    with AtomicFile(path) as f:
        write_header(f, MODEL, version, *shape, config.padded_vocab_size)
        write_tensors(f, dict(model.named_parameters()), config, dtype)


def read_model(path):
    """(GPTConfig, {parameter's name: tensor}, dtype) of a file of weights: views of a memory map.

    Raises `UserError` where header and size don't agree or the header is none of a GPT-2.
    """
    header = read_header(path, MODEL, tuple(DTYPE_OF_VERSION))
    fields = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    try:
        config = GPTConfig(**dict(zip(fields, header[2:7], strict=True)))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    dtype, padded_vocab_size = DTYPE_OF_VERSION[header[1]], header[7]
    if padded_vocab_size < config.vocab_size:
        raise UserError(f"{path}: padded vocabulary {padded_vocab_size}, expected at least {config.vocab_size}")
    count = count_values(config, padded_vocab_size)
    require_size(path, 4 * HEADER + count * dtype.itemsize)
    flat = map_values(path, dtype, 4 * HEADER, count)
    return config, split(flat, config, padded_vocab_size), dtype


def write_debug_state(path, model, inputs, targets):
    """Write what `model` makes of a batch, ids (B, T) and targets (B, T): logits, loss, each weight's gradient.

    Returns the loss.
    """
    state = debug_state(model, inputs, targets)
    with AtomicFile(path) as f:
        write_header(f, DEBUG_STATE, DEBUG_STATE_VERSION, *inputs.shape)
        for part in (inputs.int(), targets.int(), state.logits, state.loss):
            f.write(as_bytes(part))
        write_tensors(f, state.grads, model.config, torch.float32)
    return state.loss.item()


def debug_state(model, inputs, targets):
    """Run `model` on a batch, forward and backward, in float32. Leaves no gradient behind."""
    with torch.no_grad():
        logits = model(inputs)  # (B, T, vocab_size)
    model.zero_grad()
    loss = model(inputs, targets)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    return DebugState(inputs, targets, logits, loss.detach(), grads | {WTE: grads[WTE][: model.config.vocab_size]})


def is_debug_state(path):
    with open(path, "rb") as f:
        return magic_of(f.read(4)) == DEBUG_STATE


def read_debug_state(path, config):
    """A `DebugState` of a model of this config (the file doesn't say)."""
    header = read_header(path, DEBUG_STATE, (DEBUG_STATE_VERSION,))
    B, T = header[2:4]
    if not (B > 0 and 0 < T <= config.block_size):
        raise UserError(
            f"{path}: a batch of {B}×{T}, expected at least 1×1 and at most {config.block_size} tokens a row"
        )
    sizes = [B * T, B * T, B * T * config.vocab_size, 1, count_values(config, config.padded_vocab_size)]
    require_size(path, 4 * (HEADER + sum(sizes)))
    ids = map_values(path, torch.int32, 4 * HEADER, 2 * B * T).long()
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise UserError(
            f"{path} holds ids from {ids.min()} to {ids.max()}, the model knows 0 to {config.vocab_size - 1}"
        )
    flat = map_values(path, torch.float32, 4 * HEADER, sum(sizes))
    _, _, logits, loss, grads = flat.split(sizes)
    inputs, targets = ids.view(2, B, T)
    grads = split(grads, config, config.padded_vocab_size)
    return DebugState(inputs, targets, logits.view(B, T, -1), loss.view(()), grads)


def write_tokenizer(path, tokenizer):
    """Write the bytes of each of a `tokenizer.Tokenizer`'s tokens."""
    with AtomicFile(path) as f:
        write_header(f, TOKENIZER, TOKENIZER_VERSION, tokenizer.vocab_size, tokenizer.eot)
        for i in range(tokenizer.vocab_size):
            token = tokenizer.decode_bytes([i])
            f.write(bytes((len(token),)) + token)  # no token is longer than a byte can say: GPT-2's longest has 128


def write_eval(path, examples):
    """Write multiple-choice examples: (label, context ids, [ids of each ending]) each. Returns how many."""
    streams = []
    for index, (label, context, endings) in enumerate(examples):
        rows = [value for row in (context, *endings) for value in (len(row), *row)]
        stream = [START_OF_EXAMPLE, 0, index, label, len(endings), *rows]
        stream[1] = 2 * len(stream)  # bytes from one example to the next
        if max(stream[1:]) >= START_OF_EXAMPLE:
            raise UserError(f"{path}: example {index} doesn't fit the format: at most 65,534 examples, bytes or ids")
        streams.append(stream)
    if not streams:
        raise UserError(f"{path}: no examples to write")
    with AtomicFile(path) as f:
        write_header(f, EVAL, EVAL_VERSION, len(streams), max(stream[1] for stream in streams))
        f.write(np.concatenate([np.array(stream, dtype="<u2") for stream in streams]).data)
    return len(streams)


def write_header(f, *values):
    header = np.zeros(HEADER, dtype="<i4")
    header[: len(values)] = values
    f.write(header.data)


def read_header(path, magic, versions):
    """The header as Python ints. Raises `UserError` unless it begins with `magic` and one of `versions`."""
    header = np.fromfile(path, dtype="<i4", count=HEADER).tolist()
    found = KINDS.get(header[0] if header else None)
    if found != KINDS[magic]:
        raise UserError(
            f"{path} is {f'a {found} of llm.c' if found else 'no file of llm.c'}, expected a {KINDS[magic]}"
        )
    if len(header) < HEADER:
        raise UserError(f"{path} is truncated: {4 * len(header)} bytes, its header alone has {4 * HEADER}")
    if header[1] not in versions:
        known = " or ".join(map(str, versions))
        raise UserError(f"{path} has version {header[1]}, expected {known}; write it anew with a current llm.c")
    return header


def require_size(path, expected):
    size = os.path.getsize(path)
    if size != expected:
        what = "truncated" if size < expected else "too long"
        raise UserError(f"{path} is {what} or mislabelled: {size:,} bytes, expected {expected:,}; make it anew")


def count_values(config, padded_vocab_size):
    """How many numbers the weights are. In plain integers: a damaged header must not make anything large."""
    C, T, L = config.n_embd, config.block_size, config.n_layer
    return (padded_vocab_size + T + 2) * C + L * (12 * C + 13) * C


def map_values(path, dtype, offset, count):
    """A file's numbers (count,), private to this process, read when they are looked at."""
    raw = np.memmap(path, dtype=np.uint8, mode="c", offset=offset, shape=(count * dtype.itemsize,))
    return torch.from_numpy(raw).view(dtype)


def split(flat, config, padded_vocab_size):
    """The weights' numbers (n,) → {parameter's name: tensor}, the vocabulary without padding."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in GPT(config).named_parameters()}
    shapes[WTE] = torch.Size((padded_vocab_size, config.n_embd))
    names = tensor_names(config.n_layer)
    parts = flat.split([shapes[name].numel() for name in names])
    tensors = {name: part.view(shapes[name]) for name, part in zip(names, parts, strict=True)}
    return tensors | {WTE: tensors[WTE][: config.vocab_size]}


def write_tensors(f, tensors, config, dtype):
    """Write {parameter's name: tensor} in the file's order; the vocabulary's padding is zeros, whatever it was."""
    for name in tensor_names(config.n_layer):
        tensor = tensors[name].detach().to(dtype)
        if name == WTE:
            padding = config.padded_vocab_size - config.vocab_size
            tensor = F.pad(tensor[: config.vocab_size], (0, 0, 0, padding))
        f.write(as_bytes(tensor))


def as_bytes(tensor):
    """A tensor's numbers, row by row; bfloat16, which NumPy lacks, included."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def tensor_names(n_layer):
    """Parameter names in the order of the file."""
    blocks = (f"transformer.h.{layer}.{name}" for name in BLOCK_TENSORS for layer in range(n_layer))
    return (WTE, "transformer.wpe.weight", *blocks, "transformer.ln_f.weight", "transformer.ln_f.bias")
