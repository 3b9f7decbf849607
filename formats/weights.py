"""Any model file ↔ `GPT`. What a file is, its content says, not its name:

    gpt2 … gpt2-xl      Hugging Face's weights, downloaded once (its HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply)
    a folder            Hugging Face's format: config.json, and model.safetensors or pytorch_model.bin
    a torch.save file   a checkpoint of ours, of nanoGPT or of build-nanogpt; nothing in it is ever executed
    llm.c's magic int   weights in its layout, see `llmc.py`

`transformers` isn't needed to read or write its format: config.json is JSON and safetensors has its own library, and
importing it takes longer than loading a model.
"""

import contextlib
import json
import os
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import safetensors.torch
import torch

from formats import checkpoint, llmc
from model import GPT, GPTConfig
from system.errors import UserError
from system.files import flush_folder
from system.runtime import dtype_name
from tokens.tokenizer import get_tokenizer

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored transposed
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks that older code saved among its weights
VOCABULARY = ("transformer.wte.weight", "lm_head.weight")  # the tensors with a row an id
TOKENIZER_OF_VOCAB = {50257: "gpt2", 257: "byte"}
SHAPE_FIELDS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
GPT2_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # also tiktoken's cache key
GPT2_VOCABULARY = {  # Hugging Face's name for each file, OpenAI's, and its SHA-256
    "vocab.json": ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}


@dataclass(frozen=True)
class Loaded:
    model: GPT  # on the CPU, float32, in eval mode
    tokenizer: str | None  # None where the file doesn't tell
    source: str  # what was loaded, in words for people


class ForeignConfig:
    """Stands in for build-nanogpt's `__main__.GPTConfig` while its checkpoint is read: attributes, no code."""


def load_model(name, dropout=0.0):
    """Load `name`: gpt2 … gpt2-xl, a folder in Hugging Face's format, a file of ours, nanoGPT's or llm.c's, or the
    newest checkpoint in a run's folder.

    Raises `UserError` where it isn't there, can't be read or isn't a GPT-2.
    """
    if name in PRETRAINED:
        return read_hugging_face(download(name), name, dropout)
    run = checkpoint.list_checkpoints(name)
    if run:
        name = str(run[max(run)])
    if os.path.isdir(name):
        return read_hugging_face(name, name, dropout)
    try:
        with open(name, "rb") as f:
            start = f.read(9)
    except FileNotFoundError as error:
        names = ", ".join(PRETRAINED)
        raise UserError(f"{name}: no such model; expected a file, a folder, or one of {names}") from error
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from error
    if llmc.magic_of(start):
        return read_llmc(name, dropout)
    if start[:4] == b"PK\3\4" or start[:2] == b"\x80\2":  # a zip archive, or torch.save's older format
        return read_checkpoint(name, dropout)
    if start[8:] == b"{":
        raise UserError(f"{name} holds tensors alone; name the folder in which it lies beside its config.json")
    raise UserError(
        f"{name} is not a model: expected a checkpoint, an llm.c model or a folder in Hugging Face's format"
    )


def read_llmc(path, dropout):
    config, tensors, dtype = llmc.read_model(path)
    model = build(replace(config, dropout=dropout), tensors, path)
    return Loaded(model, TOKENIZER_OF_VOCAB.get(config.vocab_size), f"{path} (llm.c, {dtype_name(dtype)})")


def make_config(shape, dropout, source):
    """A `GPTConfig` from five numbers in a dict; where they make none, the error names the file."""
    wrong = [name for name in SHAPE_FIELDS if not isinstance(shape.get(name), int)]
    if wrong:
        raise UserError(f"{source}: its config gives {wrong[0]} = {shape.get(wrong[0])!r}, expected an integer")
    try:
        return GPTConfig(**{name: shape[name] for name in SHAPE_FIELDS}, dropout=dropout)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@torch.no_grad()
def build(config, tensors, source):
    """A `GPT` with `tensors` ({parameter's name: tensor, the vocabulary without padding}), each of them checked."""
    tensors = dict(tensors)
    head = tensors.pop("lm_head.weight", None)
    if head is not None and not torch.equal(head, tensors.get("transformer.wte.weight", head)):
        raise UserError(f"{source}: its lm_head.weight differs from transformer.wte.weight; in GPT-2 they are one")
    with torch.device("meta"):
        model = GPT(config)  # no memory touched and no random numbers drawn for weights that come from a file
    require_shapes(tensors, {name: tensor.shape for name, tensor in tensors_of(model).items()}, source)
    model.to_empty(device="cpu")
    model.lm_head.weight = model.transformer.wte.weight  # to_empty makes two of the tied ones
    model.transformer.wte.weight[config.vocab_size :] = 0
    for name, target in tensors_of(model).items():
        target.copy_(tensors[name])
    return model.eval()


def require_shapes(tensors, shapes, source):
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{source} holds no tensor {name}")
        if name not in shapes:
            raise UserError(f"{source} holds a tensor {name}, which a GPT-2 of its config doesn't have")
        if tensors[name].shape != shapes[name]:
            found, expected = tuple(tensors[name].shape), tuple(shapes[name])
            raise UserError(f"{source}: {name} has shape {found}, its config says {expected}")


def tensors_of(model):
    """A `GPT`'s weights as `build` takes them: by name, tied ones once, the vocabulary without padding."""
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][: model.config.vocab_size]
    return tensors


# Hugging Face ---------------------------------------------------------------------------------------------------------


def download(name):
    """The folder in the hub's cache with the config and weights of `name`, fetched if they aren't there yet."""
    import huggingface_hub as hub  # here, so that nothing else waits for it
    from huggingface_hub.errors import LocalEntryNotFoundError

    def folder(repo, **options):
        paths = [hub.hf_hub_download(repo, f, **options) for f in ("config.json", "model.safetensors")]
        return os.path.dirname(paths[0])

    repos = (f"openai-community/{name}", name)  # older caches and mirrors know the short name
    for repo in repos:
        with contextlib.suppress(LocalEntryNotFoundError):
            return folder(repo, local_files_only=True)  # these weights never change: no look at the network
    failures = []
    for repo in repos:
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, "config.json"))  # fails at once; a download retries for long
            return folder(repo)
        except Exception as error:  # the hub's errors and those of the network below it are of many kinds
            failures.append(error)
    reason = str(failures[0]).strip().splitlines()[0]
    raise UserError(
        f"{name} could not be loaded ({reason}). Without a network: set HF_ENDPOINT to a mirror, or HF_HOME to a cache"
        " copied from a machine that has it, or name a folder"
    ) from failures[0]


def read_hugging_face(folder, source, dropout):
    try:
        settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        shape = {name: settings.get(theirs) for name, theirs in HUGGING_FACE_SHAPE.items()}
    except FileNotFoundError as error:
        raise UserError(f"{source} is not a model's folder: it holds no config.json") from error
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{source}/config.json can't be read ({error})") from error
    config = make_config(shape, dropout, source)
    for name, allowed in HUGGING_FACE_SETTINGS.items():
        value = settings.get(name, allowed[0])
        if value not in allowed:
            raise UserError(
                f"{source} is not a plain GPT-2: its config has {name} = {value!r}, expected {allowed[0]!r}"
            )
    if settings.get("n_inner") not in (None, 4 * config.n_embd):
        raise UserError(f"{source}: n_inner = {settings['n_inner']}, expected 4·n_embd = {4 * config.n_embd}")
    model = build(config, from_hugging_face(read_tensor_files(folder)), source)
    return Loaded(model, TOKENIZER_OF_VOCAB.get(config.vocab_size), source)


HUGGING_FACE_SHAPE = dict(zip(SHAPE_FIELDS, ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd"), strict=True))
HUGGING_FACE_SETTINGS = {  # what our model computes, the usual value first
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of the tanh form
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def read_tensor_files(folder):
    """All tensors of a folder, from safetensors if it has them, else from pickles; in one file or in several."""
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_pickled_tensors)):
        path, index = Path(folder) / name, Path(folder) / f"{name}.index.json"
        if path.exists():
            return read(path)
        if index.exists():
            try:
                files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
                raise UserError(f"{index} can't be read ({error})") from error
            return {k: v for file in sorted(files) for k, v in read(Path(folder) / os.path.basename(file)).items()}
    raise UserError(f"{folder} holds no model.safetensors or pytorch_model.bin")


def read_pickled_tensors(path):
    tensors = read_torch_file(path)
    if not is_tensors(tensors):
        raise UserError(f"{path} is no model: expected a dict of tensors by name")
    return tensors


def read_safetensors(path):
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged or not a safetensors file ({error}); fetch it anew") from error


def plain_names(tensors):
    """Tensors under GPT-2's names: wrappers' prefixes off, `transformer.` on where it lacks, old buffers out."""
    plain = {}
    for name, tensor in tensors.items():
        bare = re.sub(
            r"^(module\.|transformer\.)+", "", str(name).replace("_orig_mod.", "")
        )  # of DDP and torch.compile
        if not bare.endswith(BUFFERS):
            plain[bare if bare.startswith("lm_head.") else f"transformer.{bare}"] = tensor
    return plain


def from_hugging_face(tensors):
    """Hugging Face's tensors under our names and in our orientation (its Conv1D stores weights transposed)."""
    return {name: t.T if name.endswith(CONV1D) and t.dim() == 2 else t for name, t in plain_names(tensors).items()}


def save_hugging_face(model, tokenizer, folder):
    """Write `folder` so that `AutoModelForCausalLM.from_pretrained(folder)` has the same model.

    It appears under its name only when whole. Returns what is missing, in words, or None: the GPT-2 tokenizer's files
    are left out where the vocabulary can't be had. Raises `OSError` where it can't be written.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        tensors = {n: t.T if n.endswith(CONV1D) else t for n, t in tensors_of(model).items()}
        tensors = {n: t.contiguous().clone() for n, t in tensors.items()}  # a slice would be saved with all its padding
        safetensors.torch.save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", hugging_face_config(model.config, tokenizer))
        write_json(temporary / "generation_config.json", end_of_text(tokenizer))
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # safetensors makes it private
        missing = save_gpt2_tokenizer(temporary, model.config.block_size) if tokenizer == "gpt2" else None
        temporary.replace(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return missing


def hugging_face_config(config, tokenizer):
    """The content of config.json."""
    shape = {theirs: asdict(config)[name] for name, theirs in HUGGING_FACE_SHAPE.items()}
    settings = {name: allowed[0] for name, allowed in HUGGING_FACE_SETTINGS.items()}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout)
    kind = {"architectures": ["GPT2LMHeadModel"], "dtype": "float32", "tie_word_embeddings": True}
    return kind | settings | shape | {"n_ctx": config.block_size, "n_inner": None} | dropout | end_of_text(tokenizer)


def end_of_text(tokenizer):
    """The ids with which a text begins and ends; none where the tokenizer isn't known."""
    eot = next((vocab_size - 1 for vocab_size, name in TOKENIZER_OF_VOCAB.items() if name == tokenizer), None)
    return {"bos_token_id": eot, "eos_token_id": eot}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_gpt2_tokenizer(folder, block_size):
    """Put the GPT-2 tokenizer's files into `folder`; returns None, or why it could not be done."""
    from tiktoken.load import read_file_cached

    try:
        get_tokenizer("gpt2")  # explains itself where the vocabulary isn't there
        for name, (remote, sha256) in GPT2_VOCABULARY.items():
            (folder / name).write_bytes(read_file_cached(GPT2_VOCABULARY_URL + remote, sha256))
    except UserError as error:
        return f"the tokenizer's files: {error}"
    with quiet_transformers() as transformers:
        tokenizer = transformers.GPT2Tokenizer.from_pretrained(folder, model_max_length=block_size)
        tokenizer.save_pretrained(folder)  # adds tokenizer.json and tokenizer_config.json
    return None


@contextlib.contextmanager
def quiet_transformers():
    """The `transformers` library without its progress bars and warnings; only where its own code is what is wanted."""
    import transformers

    level = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


# torch.save files -----------------------------------------------------------------------------------------------------


def read_torch_file(path):
    """What `torch.load` finds, by memory map; refused if it holds more than tensors and plain values."""
    try:
        with torch.serialization.safe_globals([(ForeignConfig, "__main__.GPTConfig")]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # damaged archives and unwelcome pickles raise many kinds
        asked = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if asked:
            raise UserError(f"{path} was refused: its pickle asks for {asked[1]}, which could run any code") from error
        raise UserError(f"{path} is damaged or cut short ({type(error).__name__}); fetch it anew") from error


def read_checkpoint(path, dropout):
    """A checkpoint of ours (its archive ends with a checksum), else of nanoGPT or build-nanogpt."""
    if is_ours(path):
        state = checkpoint.load(path, mmap=True)  # the optimizer's two thirds are never read
        config = make_config(state["model_config"], dropout, path)
        tensors = without_padding(state["model"], config)
        return Loaded(build(config, tensors, path), state["tokenizer"], f"{path} (step {state['step']})")
    state = read_torch_file(path)
    if not isinstance(state, dict) or not is_tensors(state.get("model")):
        raise UserError(f"{path} is not a checkpoint of ours, of nanoGPT or of build-nanogpt")
    if "format_version" in state:
        checkpoint.verify(path)  # one of ours after all, and its checksum is gone: this names the damage
    return read_nanogpt(path, state, dropout)


def is_tensors(value):
    """Whether `value` is {name: tensor}, and not empty."""
    return isinstance(value, dict) and value != {} and all(isinstance(v, torch.Tensor) for v in value.values())


def without_padding(tensors, config):
    return {name: t[: config.vocab_size] if name in VOCABULARY else t for name, t in tensors.items()}


def is_ours(path):
    try:
        with zipfile.ZipFile(path) as archive:
            return len(archive.comment) == checkpoint.DIGEST_LENGTH
    except zipfile.BadZipFile:
        return False  # cut short, or torch.save's older format


def read_nanogpt(path, state, dropout):
    """nanoGPT's `ckpt.pt` and build-nanogpt's `model_05000.pt`.

    Without biases (nanoGPT's `bias=False`) they are zeros here: the same function. 50304 is the vocabulary of GPT-2
    with 47 rows of padding, which no id ever selects.
    """
    config = state.get("config")
    shape = vars(config) if isinstance(config, ForeignConfig) else state.get("model_args")
    if not isinstance(shape, dict):
        raise UserError(f"{path} holds weights but no config: expected model_args (nanoGPT) or config (build-nanogpt)")
    if shape.get("vocab_size") == 50304:
        shape = shape | {"vocab_size": 50257}
    config = make_config(shape, dropout, path)
    tensors = without_padding(plain_names(state["model"]), config)
    weights = {n: t for n, t in tensors.items() if n.startswith(("transformer.h.", "transformer.ln_f."))}
    zeros = {n.removesuffix("weight") + "bias": torch.zeros(len(t)) for n, t in weights.items() if n.endswith("weight")}
    step = state.get("step", state.get("iter_num"))
    model = build(config, (zeros if shape.get("bias") is False else {}) | tensors, path)
    return Loaded(model, TOKENIZER_OF_VOCAB.get(config.vocab_size), f"{path} (nanoGPT, step {step})")
