"""GGUF: the files of llama.cpp, and so of Ollama and LM Studio. One file holds shape, tensors and tokenizer.

Names and fields are those that llama.cpp's convert_hf_to_gguf.py writes for the architecture `gpt2`. As there, only
matrices are in half precision: vectors and position embeddings stay float32. The `gguf` package does the packing.
"""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import torch

from formats.hugging_face import CONFIG_VALUES, gpt2_vocabulary
from formats.model_file import (
    HEAD,
    SHAPE_FIELDS,
    ModelFile,
    as_bytes,
    check_shape_fits,
    checked_shape,
    parameter_shapes,
)
from system.boundary import foreign, show
from system.errors import UserError
from system.files import AtomicFile
from system.packages import install_command
from tokens.chat import JINJA
from tokens.tokenizer import EOT_TEXT, VOCAB_SIZES, tokenizer_of_vocab

START = b"GGUF"
ARCHITECTURE = "gpt2"
TYPES = {  # GGUF's names of a tensor's type, and of a file whose matrices are of it
    torch.float32: ("F32", "ALL_F32"),
    torch.float16: ("F16", "MOSTLY_F16"),
    torch.bfloat16: ("BF16", "MOSTLY_BF16"),
}
ALIGNMENT = 32  # bytes: where the data of a tensor may begin
WPE = "transformer.wpe.weight"
MODULES = {  # GPT-2's names without `transformer.` → GGUF's
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
SHAPE_KEYS = {  # the vocabulary's size is that of the token embedding
    "block_size": "gpt2.context_length",
    "n_layer": "gpt2.block_count",
    "n_head": "gpt2.attention.head_count",
    "n_embd": "gpt2.embedding_length",
}
INNER, EPSILON = "gpt2.feed_forward_length", "gpt2.attention.layer_norm_epsilon"
LAYER_NORM_EPSILON = CONFIG_VALUES["layer_norm_epsilon"][0]


def require_package():
    """Return the `gguf` package. Raises `UserError` if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"GGUF files need the package gguf ({error}): {install_command('gguf')}") from error
    return gguf


def gguf_name(name):
    """GGUF's name of a parameter: `transformer.h.3.mlp.c_fc.bias` → `blk.3.ffn_up.bias`."""
    module, _, kind = name.removeprefix("transformer.").rpartition(".")
    if module.startswith("h."):
        _, layer, module = module.split(".", 2)
        return f"blk.{layer}.{MODULES[module]}.{kind}"
    return f"{MODULES[module]}.{kind}"


# ---- writing ----


def write(path, shape, tensors, tokenizer, dtype, chat=False):
    """Write a model with its matrices in `dtype`, a key of TYPES.

    `shape`, `tensors`, `tokenizer` and `chat` are those of a `ModelFile`; with `chat`, the tokenizer gets the template
    of the chat format. Raises `UserError` if the package is missing, or if the tokenizer is unknown or its vocabulary
    cannot be loaded, and `OSError` if the file cannot be written.
    """
    gguf = require_package()
    tokens, merges = vocabulary(tokenizer)
    tensors = {name: tensor.to(stored_dtype(name, tensor, dtype)) for name, tensor in tensors.items()}
    with AtomicFile(path) as f:
        writer = gguf.GGUFWriter(f.name, ARCHITECTURE)
        writer.add_name(Path(path).stem)
        writer.add_file_type(gguf.LlamaFileType[TYPES[dtype][1]])
        add_shape(writer, shape)
        add_tokenizer(writer, tokens, merges, gguf.TokenType)
        if chat:
            writer.add_chat_template(JINJA)
        for name, tensor in tensors.items():
            kind = gguf.GGMLQuantizationType[TYPES[tensor.dtype][0]]
            writer.add_tensor_info(gguf_name(name), tensor.shape, np.float32, tensor.nbytes, kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        f.seek(0, os.SEEK_END)
        for tensor in tensors.values():
            pad(f)
            f.write(as_bytes(tensor))
        pad(f)


def stored_dtype(name, tensor, dtype):
    """The dtype of a parameter in a file whose matrices are in `dtype`."""
    return dtype if tensor.dim() == 2 and name != WPE else torch.float32


def add_shape(writer, shape):
    writer.add_context_length(shape["block_size"])
    writer.add_embedding_length(shape["n_embd"])
    writer.add_feed_forward_length(4 * shape["n_embd"])
    writer.add_block_count(shape["n_layer"])
    writer.add_head_count(shape["n_head"])
    writer.add_layer_norm_eps(LAYER_NORM_EPSILON)


def add_tokenizer(writer, tokens, merges, token_type):
    """Add a BPE over bytes whose last token is end-of-text; nothing is put before a prompt."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([token_type.NORMAL] * (len(tokens) - 1) + [token_type.CONTROL])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def vocabulary(tokenizer):
    """The tokens of a tokenizer in the order of their ids, and its merges in the order of their ranks; lists of texts.

    A token's text has one character for each of its bytes: that of `byte_characters`.
    """
    eot = EOT_TEXT.decode()
    if tokenizer == "byte":
        never = f"{eot} {eot}"  # llama.cpp expects a merge; no text is cut into the parts that this one joins
        return [*byte_characters(), eot], [never]
    if tokenizer == "gpt2":
        files = gpt2_vocabulary()
        ids = json.loads(files["vocab.json"])
        return sorted(ids, key=ids.get), files["merges.txt"].decode().splitlines()[1:]  # the first is its version
    raise UserError(f"the model's tokenizer is unknown, and a GGUF file holds it: expected {' or '.join(VOCAB_SIZES)}")


def byte_characters():
    """The character of each byte in GPT-2's vocabulary: its own in Latin-1 if that is visible, else one from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def pad(f):
    f.write(bytes(-f.tell() % ALIGNMENT))


# ---- reading ----


def matches(path, start):
    return start.startswith(START)


def read(path):
    """The `ModelFile` of a GPT-2. Its tensors are views of a memory map. Raises `UserError` for any other content."""
    gguf = require_package()
    with foreign(path, "a GGUF file"):
        reader = gguf.GGUFReader(path, "c")  # changes of the tensors stay in this process
        fields = {key: field.contents() for key, field in reader.fields.items() if not is_list(field)}
        found = {tensor.name: tensor for tensor in reader.tensors}
        shape = shape_of(fields, found, path)
    check_function(fields, shape, path)
    check_shape_fits(shape, os.path.getsize(path), path)
    names = {gguf_name(name): name for name, _ in parameter_shapes(shape)} | {"output.weight": HEAD}

    def load():
        return {names.get(name, name): to_torch(tensor, path) for name, tensor in found.items()}

    chat = fields.get("tokenizer.chat_template") == JINJA
    return ModelFile(shape, tokenizer_of_vocab(shape["vocab_size"]), f"{path} (GGUF)", load, chat)


def is_list(field):
    return len(field.data) != 1


def shape_of(fields, tensors, path):
    """The shape that the fields and the token embedding describe."""
    if fields.get("general.architecture") != ARCHITECTURE:
        raise UserError(f"{path} is a {show(fields.get('general.architecture'))}, expected a {ARCHITECTURE}")
    embedding = tensors.get("token_embd.weight")
    rows = None if embedding is None else int(embedding.shape[-1])  # GGUF lists the fastest dimension first
    values = {ours: fields.get(key) for ours, key in SHAPE_KEYS.items()} | {"vocab_size": rows}
    return checked_shape({name: values[name] for name in SHAPE_FIELDS}, path)


def check_function(fields, shape, path):
    """Raise `UserError` if the fields describe another function than a plain GPT-2."""
    epsilon = torch.tensor(LAYER_NORM_EPSILON).item()  # rounded to float32, as in the file
    for key, expected in ((INNER, 4 * shape["n_embd"]), (EPSILON, epsilon)):
        if fields.get(key) != expected:
            raise UserError(f"{path} is not a plain GPT-2: {key} = {show(fields.get(key))}, expected {expected:g}")


def to_torch(tensor, path):
    """A tensor of the package's reader as torch's. Raises `UserError` if it is quantized."""
    kind = tensor.tensor_type.name
    known = [kind for kind, _ in TYPES.values()]
    if kind not in known:
        raise UserError(f"{path}: {tensor.name} is {kind}, expected {', '.join(known)}: quantized models are not read")
    values = torch.from_numpy(tensor.data)
    return values.view(torch.bfloat16) if kind == "BF16" else values
