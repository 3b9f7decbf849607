"""Write a model in another program's format, or find where two models differ.

    python export.py log/model_19073.pt --to hf --out my_gpt2                a folder in Hugging Face's format
    python export.py log/gpt2_124M --to hf --out my_gpt2 --push me/my_gpt2   the same, uploaded to the hub
    python export.py log/model_19073.pt --to gguf --out my_gpt2.gguf         for llama.cpp, Ollama, LM Studio
    python export.py log/model_19073.pt --to llmc --out gpt2_124M.bin --debug_state
    python export.py gpt2 --to llmc-tokenizer --out gpt2_tokenizer.bin       the tokenizer of that name
    python export.py hellaswag_val.jsonl --to llmc-hellaswag --out hellaswag_val.bin
    python export.py log/model_19073.pt --check my_gpt2                      exit code 1 if the models differ

`--check` runs a folder in Hugging Face's format with `transformers`, so it compares implementations and not only
weights. It also takes a debug state of llm.c, which holds the logits and gradients of a port.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from configurator import Range, configure
from formats import checkpoint, gguf, hugging_face, llmc
from formats.model_card import card_files
from formats.read import BestFlag, read
from inference import compare
from inference.hellaswag import read_records
from model import GPT
from system.boundary import foreign
from system.errors import UserError, command, first_line
from system.files import require_new_path
from system.runtime import dtype_name
from text.retry import describe_network_error
from tokens.shards import open_shard
from tokens.tokenizer import get_tokenizer

DEBUG_BATCH = (4, 64)  # rows and tokens of llm.c's own debug state
LLMC_DTYPES = {"llmc": torch.float32, "llmc-bf16": torch.bfloat16}
GGUF_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

NO_ACCESS = "the hub refuses it: set HF_TOKEN to a token that may write there, or run `hf auth login`"
REFUSALS = {401: NO_ACCESS, 403: NO_ACCESS, 409: "it exists already on the hub; choose another name"}  # by HTTP status


@dataclass(frozen=True)
class Settings(BestFlag):
    """Write a model in another program's format, or compare it with another model."""

    source: tyro.conf.Positional[str] = ""
    """a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT, llm.c or GGUF;
    for llm.c also a tokenizer's name, or HellaSwag's .jsonl"""
    to: Literal["hf", "gguf", "llmc", "llmc-bf16", "llmc-tokenizer", "llmc-hellaswag"] | None = None
    """format to write: a folder in Hugging Face's format, llama.cpp's GGUF, or one of llm.c's files"""
    out: str | None = None
    """file or folder to write; must not exist yet"""
    push: str | None = None
    """with hf: upload the folder to OWNER/NAME, a new repository of the Hugging Face hub"""
    public: bool = False
    """with push: everyone may see the repository; by default it is private"""
    dtype: Literal[*GGUF_DTYPES] = "float32"
    """with gguf: number format of the matrices"""
    debug_state: bool = False
    """with llmc or llmc-bf16: also write the logits, loss and gradients of a batch, next to OUT"""
    shard: str | None = None
    """token shard whose first tokens are the batch of the debug state; by default random ids"""
    check: str | None = None
    """compare with another model (as above), or with a debug state of llm.c"""
    tolerance: Annotated[float, Range(0)] = 1e-5
    """with --check: differences up to this share of a tensor's largest value are allowed"""

    def check_combination(self):
        if not self.source:
            raise UserError("name a model: python export.py MODEL --to hf --out FOLDER (--help lists all)")
        if self.to is None and self.check is None:
            raise UserError("nothing to do: add --to hf|gguf|llmc|llmc-bf16 --out PATH, or --check OTHER")
        if self.push is not None and self.to != "hf":
            raise UserError("--push requires --to hf")
        if self.push is not None:
            check_repository_name(self.push)
        if self.public and self.push is None:
            raise UserError("--public requires --push")
        if self.dtype != "float32" and self.to != "gguf":
            raise UserError("--dtype requires --to gguf")
        if self.debug_state and self.to not in LLMC_DTYPES:
            raise UserError("--debug_state requires --to llmc or --to llmc-bf16")
        if self.shard is not None and not self.debug_state:
            raise UserError("--shard requires --debug_state")
        if self.check is not None and self.to in ("llmc-tokenizer", "llmc-hellaswag"):
            raise UserError(f"--check compares models, and --to {self.to} writes none: use one of the two")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="source")
    settings.check_combination()
    try:
        sys.exit(run(settings))
    except OSError as error:
        raise UserError(f"{error.filename or settings.out}: {error.strerror or error}") from error


def run(settings):
    """Do what the settings ask for. Returns the exit code."""
    if settings.to is not None:
        check_output(settings)
    if settings.to == "llmc-tokenizer":
        export_tokenizer(settings)
        return 0
    if settings.to == "llmc-hellaswag":
        export_hellaswag(settings)
        return 0
    model_file = read(settings.source, settings.best)
    model = GPT.from_file(model_file)
    size = sum(tensor.numel() for tensor in model.to_tensors().values())
    print(f"{model_file.source}: {size:,} parameters, tokenizer {model_file.tokenizer or 'unknown'}")
    if settings.to == "hf":
        export_hugging_face(settings, model, model_file)
    elif settings.to == "gguf":
        export_gguf(settings, model, model_file)
    elif settings.to is not None:
        export_llmc(settings, model)
    return 0 if settings.check is None else check(model, settings.check, settings.tolerance)


def check_output(settings):
    """Raise `UserError` if --out, or the debug state next to it, is missing, exists or cannot be written."""
    if settings.out is None:
        raise UserError("--out PATH is missing: where to write")
    require_new_path(settings.out)
    if settings.to == "gguf":
        gguf.require_package()
    if settings.debug_state:
        require_new_path(debug_state_path(settings.out))


def make_parent(out):
    Path(out).parent.mkdir(parents=True, exist_ok=True)


def export_tokenizer(settings):
    tokenizer = get_tokenizer(settings.source)
    make_parent(settings.out)
    llmc.write_tokenizer(settings.out, tokenizer)
    print(f"{settings.out}: {tokenizer.vocab_size:,} tokens of {tokenizer.name}")


def export_hellaswag(settings):
    """Write HellaSwag's .jsonl as an evaluation file of llm.c, in GPT-2's tokens."""
    encode = get_tokenizer("gpt2").encode
    records = tqdm(read_records(settings.source), unit="ex", desc="encoding", leave=False, disable=None)
    examples = ((r.label, encode(r.ctx), [encode(" " + ending) for ending in r.endings]) for r in records)
    make_parent(settings.out)
    count = llmc.write_eval(settings.out, examples)
    print(f"{settings.out}: {count:,} examples")


def export_hugging_face(settings, model, model_file):
    make_parent(settings.out)
    shape, tensors = model.config.shape, model.to_tensors()
    card = card_files(model_file, settings.push or Path(settings.out).name)
    missing = hugging_face.write(settings.out, shape, tensors, model_file.tokenizer, model_file.chat, card)
    print(f"{settings.out}: {', '.join(sorted(path.name for path in Path(settings.out).iterdir()))}")
    if missing:
        print(f"left out: {missing}")
    if settings.push is not None:
        push(settings)


def check_repository_name(name):
    """Raise `UserError` unless `name` is OWNER/NAME and the hub allows it."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
        valid = name.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"--push {name}: expected OWNER/NAME, of letters, digits and single - . _ between them")


def push(settings):
    """Upload the folder to a new repository of the hub. Raises `UserError` if the hub refuses or does not answer."""
    import huggingface_hub  # here, because importing it is slow and most exports do not need it

    name, hub = settings.push, huggingface_hub.HfApi()
    later = f"{settings.out} is written: later, `hf upload {name} {settings.out}` uploads it"
    try:
        url = hub.create_repo(name, private=not settings.public)
        hub.upload_folder(repo_id=name, folder_path=settings.out, commit_message="Upload the model")
    except Exception as error:  # the hub's library and the network code below it raise many kinds
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = REFUSALS[status] if status in REFUSALS else describe_network_error(error)
        if reason is None and status is None:
            raise
        if reason is None:
            reason = f"the hub answers {status} ({first_line(error)})"
        raise UserError(f"--push {name}: {reason}; {later}") from error
    print(f"{url}: uploaded, {'public' if settings.public else 'private'}")


def export_gguf(settings, model, model_file):
    dtype = GGUF_DTYPES[settings.dtype]
    make_parent(settings.out)
    shape, tensors = model.config.shape, model.to_tensors()
    gguf.write(settings.out, shape, tensors, model_file.tokenizer, dtype, model_file.chat)
    chat = ", with a chat template" if model_file.chat else ""
    print(f"{settings.out}: GGUF with matrices in {dtype_name(dtype)}, tokenizer {model_file.tokenizer}{chat}")


def export_llmc(settings, model):
    state_path = debug_state_path(settings.out)
    if settings.debug_state:
        inputs, targets = debug_batch(model.config, settings.shard)
    dtype = LLMC_DTYPES[settings.to]
    make_parent(settings.out)
    llmc.write_model(settings.out, model.config.shape, model.to_tensors(), dtype)
    print(f"{settings.out}: llm.c weights in {dtype_name(dtype)}")
    if settings.debug_state:
        state = compare.debug_state(model, inputs, targets)
        llmc.write_debug_state(state_path, model.config.shape, state)
        size = f"{inputs.size(0)}×{inputs.size(1)} ids"
        print(f"{state_path}: {size}, loss {state.loss.item():.4f}, logits and gradients in float32")


def debug_state_path(out):
    """gpt2_124M.bin and gpt2_124M_bf16.bin → gpt2_124M_debug_state.bin, the name that llm.c's tests expect."""
    return Path(out).with_name(Path(out).stem.removesuffix("_bf16") + "_debug_state.bin")


def debug_batch(config, shard):
    """Ids and targets, (B, T) each: the first tokens of a shard, or random ids from a fixed seed."""
    B, T = DEBUG_BATCH[0], min(DEBUG_BATCH[1], config.block_size)
    if shard is None:
        ids = random_ids(config.vocab_size, B * T + 1)
    else:
        tokens = open_shard(shard)[: B * T + 1]
        if len(tokens) < B * T + 1 or tokens.max() >= config.vocab_size:
            found = f"{len(tokens)} up to {tokens.max()}"
            raise UserError(f"{shard}: expected {B * T + 1} ids below {config.vocab_size}, found {found}")
        ids = torch.from_numpy(tokens.astype("int64"))
    return ids[:-1].view(B, T), ids[1:].view(B, T)


def random_ids(vocab_size, *shape):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1337))


def check(model, other, tolerance):
    """Print a comparison of `model` with `other`. Returns 0 if they agree, 1 if they differ, as `diff` does."""
    with foreign(other, "a model to compare with"):
        lines, differ = compare_with(model, other, tolerance)
    print("\n".join(lines))
    return int(differ)


def compare_with(model, other, tolerance):
    """Compare `model` with a model or a debug state. Returns (lines to print, whether they differ)."""
    if Path(other).is_file() and llmc.is_debug_state(other):
        state = llmc.read_debug_state(other, model.config.shape)
        return compare.report_debug_state(model, state, tolerance)
    is_run = checkpoint.newest(other) is not None
    in_transformers = other in hugging_face.PRETRAINED or (Path(other).is_dir() and not is_run)
    theirs = compare.load_in_transformers(other) if in_transformers else GPT.from_pretrained(other)
    idx = random_ids(model.config.vocab_size, 1, model.config.block_size)  # one row that uses every position
    lines, differ = compare.report_models(model, theirs, idx, tolerance)
    return [f"compared with {other}, run by {'transformers' if in_transformers else 'the same code'}", *lines], differ


if __name__ == "__main__":
    main()
