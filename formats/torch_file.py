"""Files of `torch.save`: the safe way to load one, and the checkpoints of nanoGPT and build-nanogpt.

nanoGPT (`ckpt.pt`): {"model", "model_args", "iter_num", …}. build-nanogpt (`model_05000.pt`): {"model", "config",
"step", …} with an instance of `__main__.GPTConfig` as config. We read both and write neither.
"""

import os
import zipfile

import torch

from formats.model_file import (
    ModelFile,
    check_shape_fits,
    checked_shape,
    is_tensor_dict,
    with_gpt2_names,
    without_padding,
)
from formats.pickle_check import check_pickle
from system.boundary import check_declared_size, foreign, require_regular_file, show
from system.errors import UserError
from tokens.tokenizer import tokenizer_of_vocab

ZIP_START, PICKLE_START = b"PK\3\4", b"\x80\2"  # what torch.save writes since torch 1.6, and before
EXPECTED = "a file of torch.save"
LEGACY_PICKLES = 5  # in a file from before torch 1.6: magic number, version, system, the object, names of its storages
PADDED_GPT2_VOCAB = 50304  # 50257 ids and 47 rows of padding, which no id selects


class BuildNanogptConfig:
    """Replaces build-nanogpt's `__main__.GPTConfig` while its checkpoint is loaded: holds attributes, runs no code."""


def matches(path, start):
    return start.startswith((ZIP_START, PICKLE_START))


def read(path):
    """The `ModelFile` of a nanoGPT or build-nanogpt checkpoint. Raises `UserError` if it is neither."""
    state = safe_load(path, mmap=True)
    if not isinstance(state, dict) or not is_tensor_dict(state.get("model")):
        raise UserError(f"{path} is not a checkpoint of this repository, of nanoGPT or of build-nanogpt")
    if "format_version" in state:
        raise UserError(f"{path} is damaged: the checksum of this checkpoint is missing; use an earlier checkpoint")
    config = model_config(state, path)
    shape = checked_shape(config, path)
    check_shape_fits(shape, os.path.getsize(path), path)
    step = state.get("step", state.get("iter_num"))

    def load():
        tensors = without_padding(with_gpt2_names(state["model"]), shape["vocab_size"])
        return zero_biases(tensors) | tensors if config.get("bias") is False else tensors

    return ModelFile(shape, tokenizer_of_vocab(shape["vocab_size"]), f"{path} (nanoGPT, step {show(step)})", load)


def safe_load(path, mmap=False):
    """What `torch.load` finds in a file, on the CPU. With `mmap`, tensors are read when they are used.

    Files written before torch 1.6 are no zip archives and cannot be memory-mapped; they are read at once.
    Raises `UserError` if the file is damaged or holds more than dense tensors and plain Python values.
    """
    require_regular_file(path, EXPECTED)
    with foreign(path, EXPECTED):
        with open(path, "rb") as f:
            is_archive = f.read(len(ZIP_START)) == ZIP_START
            f.seek(0)
            pickles = archived_pickles(path) if is_archive else [f] * LEGACY_PICKLES
            for pickle in pickles:
                check_pickle(pickle, path)
        with torch.serialization.safe_globals([(BuildNanogptConfig, "__main__.GPTConfig")]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)


def archived_pickles(path):
    """The bytes of each pickle in a zip archive.

    Raises `UserError` if an entry is compressed, or if the entries claim more bytes than the file has: torch.save
    stores them plainly, and a small compressed file could fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise UserError(f"{path} is compressed, expected {EXPECTED}; save it again with torch.save")
        check_declared_size(path, sum(entry.file_size for entry in entries), os.path.getsize(path))
        return [archive.read(entry) for entry in entries if entry.filename.lower().endswith(".pkl")]


def model_config(state, path):
    """The dict with the model's shape in a checkpoint. Raises `UserError` if it has none."""
    config = state.get("config")
    config = vars(config) if isinstance(config, BuildNanogptConfig) else state.get("model_args")
    if not isinstance(config, dict):
        raise UserError(f"{path} has weights but no config: expected model_args (nanoGPT) or config (build-nanogpt)")
    if config.get("vocab_size") == PADDED_GPT2_VOCAB:
        config = config | {"vocab_size": 50257}
    return config


def zero_biases(tensors):
    """Biases for nanoGPT's `bias=False`: a zero bias for each linear layer and LayerNorm, which computes the same."""
    layers = ("transformer.h.", "transformer.ln_f.")
    weights = [name for name in tensors if name.startswith(layers) and name.endswith("weight")]
    return {name.removesuffix("weight") + "bias": torch.zeros(tensors[name].shape[:1]) for name in weights}
