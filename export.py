"""A model for other programs, and how far two models agree.

    python export.py log/model_19073.pt --to hf --out my-gpt2                a folder in Hugging Face's format
    python export.py log/model_19073.pt --to llmc --out gpt2_124M.bin --debug_state
    python export.py gpt2 --to llmc-tokenizer --out gpt2_tokenizer.bin       the tokenizer of that name
    python export.py hellaswag_val.jsonl --to llmc-hellaswag --out hellaswag_val.bin
    python export.py log/model_19073.pt --check my-gpt2                      where do they part? exit code 1 if they do

`--check` runs a folder in Hugging Face's format by `transformers`' own code, so that it compares implementations, not
only weights; and of llm.c it takes a debug state too, which holds a port's logits and gradients.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

from configurator import configure
from formats import llmc, weights
from inference import compare
from system.errors import UserError, command
from system.runtime import dtype_name
from tokens.shards import open_shard
from tokens.tokenizer import get_tokenizer

DEBUG_BATCH = (4, 64)  # rows and tokens, those of llm.c's own debug state


@dataclass(frozen=True)
class Settings:
    """Write a model in another program's format, or compare it with another model."""

    source: tyro.conf.Positional[str] = ""
    """a model: gpt2 … gpt2-xl, a folder, a checkpoint, an llm.c file; or a tokenizer's name, or HellaSwag's .jsonl"""
    to: Literal["hf", "llmc", "llmc-bf16", "llmc-tokenizer", "llmc-hellaswag"] | None = None
    """format to write: a folder for Hugging Face, or one of llm.c's files"""
    out: str | None = None
    """file or folder to write; one that is there already is left alone"""
    debug_state: bool = False
    """with llmc or llmc-bf16: also write the logits, loss and gradients of a batch, next to OUT"""
    shard: str | None = None
    """token shard whose first tokens are the debug state's batch; random ids without it"""
    check: str | None = None
    """compare with this model, or with an llm.c debug state"""
    tolerance: float = 1e-5
    """difference that counts in --check, relative to a tensor's largest value"""


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="source")
    if not settings.source:
        raise UserError("name a model: python export.py MODEL --to hf --out FOLDER (--help lists all)")
    if settings.to is None and settings.check is None:
        raise UserError("say what to do: --to hf|llmc|llmc-bf16 --out PATH, or --check OTHER")
    if settings.debug_state and settings.to not in ("llmc", "llmc-bf16"):
        raise UserError("--debug_state goes with --to llmc or --to llmc-bf16")
    if settings.shard is not None and not settings.debug_state:
        raise UserError("--shard goes with --debug_state")
    if settings.check is not None and settings.to in ("llmc-tokenizer", "llmc-hellaswag"):
        raise UserError(f"--check compares models, --to {settings.to} is about none")
    try:
        sys.exit(run(settings))
    except OSError as error:
        raise UserError(f"{error.filename or settings.out}: {error.strerror or error}") from error


def run(settings):
    """Do what was asked; the exit code."""
    if settings.to is not None:
        require_free(settings.out)
    if settings.to == "llmc-tokenizer":
        tokenizer = get_tokenizer(settings.source)
        llmc.write_tokenizer(settings.out, tokenizer)
        print(f"{settings.out}: {tokenizer.vocab_size:,} tokens of {tokenizer.name}")
        return 0
    if settings.to == "llmc-hellaswag":
        count = llmc.write_eval(settings.out, read_hellaswag(settings.source))
        print(f"{settings.out}: {count:,} examples")
        return 0
    loaded = weights.load_model(settings.source)
    size = sum(tensor.numel() for tensor in weights.tensors_of(loaded.model).values())
    print(f"{loaded.source}: {size:,} parameters, tokenizer {loaded.tokenizer or 'unknown'}")
    if settings.to is not None:
        export(loaded, settings)
    return 0 if settings.check is None else check(loaded.model, settings.check, settings.tolerance)


def require_free(out):
    """Raise `UserError` unless `out` can be written without touching what is there; make its folder."""
    if out is None:
        raise UserError("--out PATH is missing: where to write")
    if os.path.lexists(out):
        raise UserError(f"{out} is there already; name another --out, or move it away")
    Path(out).parent.mkdir(parents=True, exist_ok=True)


def export(loaded, settings):
    if settings.to == "hf":
        missing = weights.save_hugging_face(loaded.model, loaded.tokenizer, settings.out)
        print(f"{settings.out}: {', '.join(sorted(path.name for path in Path(settings.out).iterdir()))}")
        if missing:
            print(f"left out: {missing}")
        return
    state_path = debug_state_path(settings.out)
    if settings.debug_state:
        require_free(state_path)
        inputs, targets = debug_batch(loaded.model.config, settings.shard)
    dtype = torch.float32 if settings.to == "llmc" else torch.bfloat16
    llmc.write_model(settings.out, loaded.model, dtype)
    print(f"{settings.out}: llm.c weights in {dtype_name(dtype)}")
    if settings.debug_state:
        loss = llmc.write_debug_state(state_path, loaded.model, inputs, targets)
        print(f"{state_path}: {inputs.size(0)}×{inputs.size(1)} ids, loss {loss:.4f}, logits and gradients in float32")


def debug_state_path(out):
    """gpt2_124M.bin and gpt2_124M_bf16.bin → gpt2_124M_debug_state.bin, where llm.c's tests look for it."""
    return Path(out).with_name(Path(out).stem.removesuffix("_bf16") + "_debug_state.bin")


def debug_batch(config, shard):
    """Ids and targets, (B, T) each: a shard's first tokens, or random ids, the same each time."""
    B, T = DEBUG_BATCH[0], min(DEBUG_BATCH[1], config.block_size)
    if shard is None:
        ids = torch.randint(config.vocab_size, (B * T + 1,), generator=torch.Generator().manual_seed(1337))
    else:
        tokens = open_shard(shard)[: B * T + 1]
        if len(tokens) < B * T + 1 or tokens.max() >= config.vocab_size:
            found = f"{len(tokens)}, the largest {tokens.max()}"
            raise UserError(f"{shard}: expected {B * T + 1} ids below {config.vocab_size}, found {found}")
        ids = torch.from_numpy(tokens.astype("int64"))
    return ids[:-1].view(B, T), ids[1:].view(B, T)


def read_hellaswag(path):
    """Yield (label, context ids, [ids of each ending]) of each line of HellaSwag's .jsonl, in GPT-2's tokens."""
    encode = get_tokenizer("gpt2").encode
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(tqdm(f, unit="ex", desc="encoding", leave=False), 1):
            try:
                example = json.loads(line)
                endings = [encode(" " + ending) for ending in example["endings"]]
                yield int(example["label"]), encode(example["ctx"]), endings
            except (ValueError, KeyError, TypeError) as error:
                wanted = "expected JSON with ctx, endings and label"
                raise UserError(f"{path}, line {number}: {wanted} ({type(error).__name__}: {error})") from error


def check(model, other, tolerance):
    """Print how `model` compares with `other`; 0 where they agree, 1 where they part (as `diff` does)."""
    if Path(other).is_file() and llmc.is_debug_state(other):
        lines, parted = compare.report_state(model, llmc.read_debug_state(other, model.config), tolerance)
    else:
        by_transformers = other in weights.PRETRAINED or Path(other).is_dir()
        theirs = compare.run_by_transformers(other) if by_transformers else weights.load_model(other).model
        config = model.config
        shape = (1, config.block_size)  # one row that reaches every position
        idx = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1337))
        print(f"compared with {other}, run by {'transformers' if by_transformers else 'the same code'}")
        lines, parted = compare.report(model, theirs, idx, tolerance)
    print("\n".join(lines))
    return int(parted)


if __name__ == "__main__":
    main()
