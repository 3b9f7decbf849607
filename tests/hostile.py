"""Model files to damage, one of each format, and what may happen when a damaged one is read: a model or one line."""

import importlib.util
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from helpers import write_hellaswag
from models import random_ids, save_checkpoint, small_gpt

from formats import gguf, hugging_face, llmc
from inference import compare
from inference.hellaswag import read_records
from model import GPT
from system.errors import UserError

TINY = {"block_size": 8, "vocab_size": 20, "n_layer": 2, "n_head": 2, "n_embd": 8}  # more structure than numbers


@dataclass(frozen=True)
class Target:
    """A file to damage and the function that reads it, or the folder it is in."""

    path: Path
    read: Callable[[], object]


def nanogpt_state(model, **model_args):
    """The content of a nanoGPT checkpoint of `model`."""
    tensors = model.to_tensors()
    args = model.config.shape | {"dropout": 0.0, "bias": True} | model_args
    return {"model": tensors, "optimizer": {"state": {0: tensors}}, "model_args": args, "iter_num": 3}


def write_folder(folder, model):
    hugging_face.write(folder, model.config.shape, model.to_tensors(), None)
    return folder


def model_target(path, read_path=None):
    """The `Target` of a model's file that is read as `read_path`, by default itself."""
    return Target(Path(path), lambda: GPT.from_pretrained(str(read_path or path)))


def make_targets(folder):
    """Write a model in every format under `folder`. Returns {name: Target}."""
    model = small_gpt(**TINY).eval()
    shape, tensors = model.config.shape, model.to_tensors()
    targets = {}

    def add(name, path, read_path=None):
        targets[name] = model_target(path, read_path)

    add("checkpoint", save_checkpoint(folder / "model_00007.pt", model))
    torch.save(nanogpt_state(model), folder / "nano.pt")
    add("nanoGPT", folder / "nano.pt")
    torch.save(nanogpt_state(model), folder / "old.pt", _use_new_zipfile_serialization=False)
    add("torch before 1.6", folder / "old.pt")
    hf = write_folder(folder / "hf", model)
    add("safetensors", hf / "model.safetensors", hf)
    add("config.json", hf / "config.json", hf)
    theirs = safetensors.torch.load_file(hf / "model.safetensors")
    pickled = write_folder(folder / "pickled", model)
    (pickled / "model.safetensors").unlink()
    torch.save(theirs, pickled / "pytorch_model.bin")
    add("pytorch_model.bin", pickled / "pytorch_model.bin", pickled)
    parts = write_folder(folder / "parts", model)
    (parts / "model.safetensors").rename(parts / "part.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(theirs, "part.safetensors")}
    (parts / "model.safetensors.index.json").write_text(json.dumps(index))
    add("index.json", parts / "model.safetensors.index.json", parts)
    llmc.write_model(folder / "gpt2.bin", shape, tensors, torch.float32)
    add("llm.c", folder / "gpt2.bin")
    if importlib.util.find_spec("gguf"):
        gguf.write(folder / "gpt2.gguf", shape, tensors, "byte", torch.bfloat16)
        add("GGUF", folder / "gpt2.gguf")
    ids = random_ids(2, 2, 4, vocab_size=20)
    llmc.write_debug_state(folder / "state.bin", shape, compare.debug_state(model, *ids))
    targets["debug state"] = Target(
        folder / "state.bin", lambda: llmc.read_debug_state(str(folder / "state.bin"), shape)
    )
    questions = write_hellaswag(folder / "hellaswag.jsonl")
    targets["hellaswag"] = Target(questions, lambda: read_records(questions))
    return targets


def flip(content, generator):
    """`content` with one to eight bits flipped, close together, at a random place."""
    damaged, place = bytearray(content), generator.randrange(len(content))
    for _ in range(generator.choice((1, 1, 1, 8))):
        damaged[min(place + generator.randrange(4), len(content) - 1)] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def refused(target):
    """The line with which a target is refused, or None if it is read. Any other exception is a failure."""
    try:
        target.read()
    except UserError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 1000
        assert str(target.path.parent) in line
        return line
    return None


def peak_bytes():
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
