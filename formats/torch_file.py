"""Files of `torch.save`: the safe way to load one, and the checkpoints of nanoGPT and build-nanogpt.

nanoGPT (`ckpt.pt`): {"model", "model_args", "iter_num", …}. build-nanogpt (`model_05000.pt`): {"model", "config",
"step", …} with an instance of `__main__.GPTConfig` as config. We read both and write neither.
"""

import re
import zipfile

import torch

from formats.model_file import ModelFile, checked_shape, is_tensor_dict, with_gpt2_names, without_padding
from system.errors import UserError
from tokens.tokenizer import tokenizer_of_vocab

ZIP_START, PICKLE_START = b"PK\3\4", b"\x80\2"  # what torch.save writes since torch 1.6, and before
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
    step = state.get("step", state.get("iter_num"))

    def load():
        tensors = without_padding(with_gpt2_names(state["model"]), shape["vocab_size"])
        return zero_biases(tensors) | tensors if config.get("bias") is False else tensors

    return ModelFile(shape, tokenizer_of_vocab(shape["vocab_size"]), f"{path} (nanoGPT, step {step})", load)


def safe_load(path, mmap=False):
    """What `torch.load` finds in a file, on the CPU. With `mmap`, tensors are read when they are used.

    Files written before torch 1.6 are no zip archives and cannot be memory-mapped; they are read at once.
    Raises `UserError` if the file is damaged or holds more than tensors and plain Python values.
    """
    try:
        with torch.serialization.safe_globals([(BuildNanogptConfig, "__main__.GPTConfig")]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except Exception as error:  # damaged archives and unsafe pickles raise many kinds
        name = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if name:
            raise UserError(f"{path} was refused: its pickle uses {name[1]}, which could run any code") from error
        raise UserError(f"{path} is damaged or incomplete ({type(error).__name__}); copy it again") from error


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
