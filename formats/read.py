"""Read a model in any known format. The content of a file decides its format, not its name.

    gpt2 … gpt2-xl      OpenAI's weights from the Hugging Face hub, downloaded once
    a folder            a run's (its newest checkpoint, with `best` its best), or Hugging Face's format
    a torch.save file   a checkpoint of this repository, of nanoGPT or of build-nanogpt; no code in it is executed
    an llm.c model      see `llmc.py`
    a GGUF file         of llama.cpp, not quantized

To add a format, write a module with `matches(path, start)` and `read(path)` and add it to `FORMATS`.
"""

import os
from dataclasses import dataclass

from formats import checkpoint, gguf, hugging_face, llmc, torch_file
from system.boundary import foreign, require_regular_file
from system.errors import UserError

FORMATS = (checkpoint, hugging_face, llmc, gguf, torch_file)  # the first that matches reads the file


def read(name, best=False):
    """The `ModelFile` of `name`: one of `hugging_face.PRETRAINED`, a file or a folder. Tensors are not read yet.

    With `best`, `name` is the folder of a run, and the checkpoint with the lowest validation loss is read. Raises
    `UserError` if there is no such model, or if it cannot be read or is not a GPT-2.
    """
    if best:
        name = checkpoint.best_of(name)
    with foreign(name, "a model"):
        if name in hugging_face.PRETRAINED:
            return hugging_face.read(name)  # a local folder of that name is ./gpt2
        start = first_bytes(name)
        for model_format in FORMATS:
            if model_format.matches(name, start):
                return model_format.read(name)
    raise UserError(
        f"{name} is not a model: expected a checkpoint, an llm.c or GGUF model, or a folder in Hugging Face's format"
    )


@dataclass(frozen=True)
class BestFlag:
    """The setting that commands pass on as `best`."""

    best: bool = False
    """of a run's folder, take model_best.pt (the lowest validation loss) instead of the newest checkpoint"""


def first_bytes(path, count=9):
    """The first bytes of a file; none for a folder. Raises `UserError` if `path` does not exist or is a pipe."""
    if os.path.isdir(path):
        return b""
    if not os.path.exists(path):
        names = ", ".join(hugging_face.PRETRAINED)
        raise UserError(f"{path}: no such model; expected a file, a folder, or one of {names}")
    require_regular_file(path, "a model")
    with open(path, "rb") as f:
        return f.read(count)
