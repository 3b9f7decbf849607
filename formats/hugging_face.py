"""Hugging Face's format: a folder with config.json and model.safetensors or pytorch_model.bin; and the hub's GPT-2.

`transformers` is not needed to read or write it: config.json is JSON and safetensors has its own library. Importing
`transformers` takes longer than loading a model.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path

import safetensors.torch

from formats.model_file import (
    SHAPE_FIELDS,
    ModelFile,
    check_shape_fits,
    checked_shape,
    is_tensor_dict,
    with_gpt2_names,
)
from formats.torch_file import safe_load
from system.boundary import foreign, library_write, read_json, require_fields, require_regular_file, show
from system.errors import UserError
from system.files import flush_folder
from tokens.chat import JINJA
from tokens.tokenizer import EOT_TEXT, VOCAB_SIZES, end_of_text_id, get_tokenizer, tokenizer_of_vocab


def gpt2_shape(n_layer, n_head, n_embd):
    return dict(zip(SHAPE_FIELDS, (1024, VOCAB_SIZES["gpt2"], n_layer, n_head, n_embd), strict=True))


PRETRAINED = {  # OpenAI's four models: name on the hub → shape
    "gpt2": gpt2_shape(12, 12, 768),
    "gpt2-medium": gpt2_shape(24, 16, 1024),
    "gpt2-large": gpt2_shape(36, 20, 1280),
    "gpt2-xl": gpt2_shape(48, 25, 1600),
}
CONFIG_NAMES = dict(zip(SHAPE_FIELDS, ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd"), strict=True))
CONFIG_VALUES = {  # the functions that our model computes; the first value of each is the default
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of GELU's tanh form
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
TOKENIZER_CONFIG = "tokenizer_config.json"
FUNCTION = (*CONFIG_NAMES.values(), *CONFIG_VALUES, "n_inner", "tie_word_embeddings", "reorder_and_upcast_attn")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored transposed
GPT2_VOCABULARY_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"  # also tiktoken's cache key
GPT2_VOCABULARY = {  # Hugging Face's name of each file, OpenAI's, and its SHA-256
    "vocab.json": ("encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    "merges.txt": ("vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
}


# ---- reading ----


def matches(path, start):
    """Whether `path` is a folder, or a safetensors file, for which `read` raises an error that says what to pass."""
    return os.path.isdir(path) or start[8:] == b"{"


def read(name):
    """The `ModelFile` of a folder, or of a name in `PRETRAINED`, which is downloaded if it is not in the hub's cache.

    Raises `UserError` if the folder's config is not that of a GPT-2 which `GPT` computes exactly.
    """
    if name in PRETRAINED:
        folder = download(name)
    elif os.path.isfile(name):
        raise UserError(f"{name} holds only tensors: name the folder that holds it and its config.json")
    else:
        folder = name
    config = read_config(folder, name)
    shape = shape_of(config, folder, name)
    check_config_values(config, name)
    tokenizer, chat = tokenizer_of_vocab(shape["vocab_size"]), has_chat_template(folder)
    return ModelFile(shape, tokenizer, name, lambda: to_gpt2(read_tensors(folder)), chat)


def download(name):
    """The folder in the hub's cache with config and weights of `name`, downloaded if they are missing there.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN apply.
    """
    import huggingface_hub as hub  # here, because importing it is slow and most commands do not need it
    from huggingface_hub.errors import LocalEntryNotFoundError

    def folder(repo, **options):
        paths = [hub.hf_hub_download(repo, file, **options) for file in ("config.json", "model.safetensors")]
        return os.path.dirname(paths[0])

    repos = (f"openai-community/{name}", name)  # older caches and mirrors use the short name
    for repo in repos:
        with contextlib.suppress(LocalEntryNotFoundError):
            return folder(repo, local_files_only=True)  # these weights never change: no request needed
    failures = []
    for repo in repos:
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, "config.json"))  # fails at once; a download retries for long
            return folder(repo)
        except Exception as error:  # the hub's library and the network code below it raise many kinds
            failures.append(error)
    reason = str(failures[0]).strip().splitlines()[0]
    raise UserError(
        f"{name} could not be downloaded ({reason}). Without a network: set HF_ENDPOINT to a mirror, or HF_HOME to a"
        " cache copied from another machine, or name a folder"
    ) from failures[0]


def read_config(folder, source):
    """The content of config.json, a dict."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"{source} is not a model folder: it has no config.json")
    return read_json(path)


def shape_of(config, folder, source):
    """The shape that a config describes. Raises `UserError` if the folder has weights that cannot be of that shape."""
    shape = checked_shape({ours: config.get(theirs) for ours, theirs in CONFIG_NAMES.items()}, source)
    inner = 4 * shape["n_embd"]
    if config.get("n_inner") not in (None, inner):
        raise UserError(f"{source}: n_inner = {show(config['n_inner'])} in its config, expected 4·n_embd = {inner}")
    files = weight_files(folder)
    if files:
        check_shape_fits(shape, sum(os.path.getsize(path) for path in files), source)
    return shape


def config_for_transformers(folder, source):
    """The part of a folder's config that decides which function it computes.

    `transformers` builds whatever config.json declares (layers, also under other names, and a label for each class)
    before it looks at the weights, and unpacks compressed pickles. Raises `UserError` if the folder is no GPT-2.
    """
    config = read_config(folder, source)
    if config.get("model_type") != "gpt2":
        raise UserError(f"{source} is a {show(config.get('model_type'))}, expected a gpt2")
    shape_of(config, folder, source)
    for path in require_weight_files(folder):
        if path.suffix != ".safetensors":
            read_pickled_tensors(path)
    return {name: config[name] for name in FUNCTION if name in config}


def check_config_values(config, source):
    """Raise `UserError` if a config describes another function than a plain GPT-2."""
    for name, allowed in CONFIG_VALUES.items():
        value = config.get(name, allowed[0])
        if value not in allowed:
            found = f"{name} = {show(value)}"
            raise UserError(f"{source} is not a plain GPT-2: {found} in its config, expected {allowed[0]!r}")


def has_chat_template(folder):
    """Whether a folder's tokenizer has the chat template that `write` gives it."""
    path = Path(folder) / TOKENIZER_CONFIG
    return path.exists() and read_json(path).get("chat_template") == JINJA


def weight_files(folder):
    """The files with a folder's tensors: safetensors if present, else pickles; one or several. None: an empty list."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        path, index = Path(folder) / name, Path(folder) / f"{name}.index.json"
        if path.exists() or index.exists():
            files = [path] if path.exists() else read_index(index)
            for file in files:
                require_regular_file(file, "a file with weights")
            return files
    return []


def require_weight_files(folder):
    files = weight_files(folder)
    if not files:
        raise UserError(f"{folder} holds no model.safetensors or pytorch_model.bin")
    return files


def read_index(path):
    """The files that hold a model in several parts; they are in the folder of the index."""
    index = read_json(path)
    require_fields(index, path, weight_map=dict)
    with foreign(path, "an index of weights"):
        return [
            path.parent / name for name in sorted({os.path.basename(file) for file in index["weight_map"].values()})
        ]


def read_tensors(folder):
    """All tensors of a folder under their own names."""
    tensors = {}
    for path in require_weight_files(folder):
        tensors |= read_safetensors(path) if path.suffix == ".safetensors" else read_pickled_tensors(path)
    return tensors


def read_safetensors(path):
    with foreign(path, "a safetensors file"):
        return safetensors.torch.load_file(path)


def read_pickled_tensors(path):
    tensors = safe_load(path, mmap=True)
    if not is_tensor_dict(tensors):
        raise UserError(f"{path} is not a model: expected a dict of tensors by name")
    return tensors


def to_gpt2(tensors):
    """Hugging Face's tensors under GPT-2's parameter names, in the orientation of nn.Linear."""
    return {name: t.T if name.endswith(CONV1D) and t.dim() == 2 else t for name, t in with_gpt2_names(tensors).items()}


# ---- writing ----


def write(folder, shape, tensors, tokenizer, chat=False, files=None):
    """Write a folder from which `AutoModelForCausalLM.from_pretrained(folder)` loads the same model.

    `shape`, `tensors`, `tokenizer` and `chat` are those of a `ModelFile`; with `chat`, the tokenizer gets the template
    of the chat format. `files`, {name: bytes}, are more files of the folder, such as those of its model card. The
    folder appears under its name when it is complete. Returns None, or the reason why the tokenizer's files are
    missing. Raises `OSError`.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        tensors = {name: t.T if name.endswith(CONV1D) else t for name, t in tensors.items()}
        tensors = {name: t.contiguous().clone() for name, t in tensors.items()}  # else a slice saves its whole storage
        with library_write(folder):
            safetensors.torch.save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", make_config(shape, tokenizer))
        write_json(temporary / "generation_config.json", end_of_text_ids(tokenizer))
        shutil.copymode(temporary / "config.json", temporary / "model.safetensors")  # safetensors makes it private
        missing = write_tokenizer(temporary, tokenizer, shape["block_size"])
        if chat and missing is None:
            add_chat_template(temporary / TOKENIZER_CONFIG)
        for name, content in (files or {}).items():
            (temporary / name).write_bytes(content)
        temporary.replace(folder)
        flush_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return missing


def make_config(shape, tokenizer):
    """The content of config.json."""
    config = {"architectures": ["GPT2LMHeadModel"], "dtype": "float32", "tie_word_embeddings": True}
    config |= {name: allowed[0] for name, allowed in CONFIG_VALUES.items()}
    config |= {theirs: shape[ours] for ours, theirs in CONFIG_NAMES.items()}
    config |= {"n_ctx": shape["block_size"], "n_inner": None}
    return config | dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0) | end_of_text_ids(tokenizer)


def end_of_text_ids(tokenizer):
    """The ids that begin and end a text: the tokenizer's last id, None if the tokenizer is not known."""
    eot = end_of_text_id(tokenizer) if tokenizer in VOCAB_SIZES else None
    return {"bos_token_id": eot, "eos_token_id": eot}


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder, tokenizer, block_size):
    """Write the files of a tokenizer, from which `AutoTokenizer` loads one with the same ids.

    Returns None, or the reason why there are none.
    """
    if tokenizer == "gpt2":
        return write_gpt2_tokenizer(folder, block_size)
    if tokenizer == "byte":
        write_byte_tokenizer(folder, block_size)
        return None
    return "the tokenizer's files: the model's tokenizer is unknown"


def write_byte_tokenizer(folder, block_size):
    """Write the byte tokenizer as a BPE without merges whose tokens are bytes: token i is byte i, then end-of-text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}  # the names by which `byte_fallback` finds them
    eot = EOT_TEXT.decode()
    tokenizer = Tokenizer(models.BPE(vocabulary | {eot: end_of_text_id("byte")}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(eot, special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size}
    config |= {"bos_token": eot, "eos_token": eot, "clean_up_tokenization_spaces": False}
    config["split_special_tokens"] = True  # text is never encoded to end-of-text, as in ours
    write_json(folder / TOKENIZER_CONFIG, config)


def add_chat_template(path):
    """Add the chat template to a tokenizer's config. It writes end-of-text into the text, which must become its id."""
    write_json(path, read_json(path) | {"chat_template": JINJA, "split_special_tokens": False})


def write_gpt2_tokenizer(folder, block_size):
    """Write the files of GPT-2's tokenizer. Returns None, or the reason why its vocabulary is not available."""
    try:
        files = gpt2_vocabulary()
    except UserError as error:
        return f"the tokenizer's files: {error}"
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with quiet_transformers() as transformers:
        tokenizer = transformers.GPT2Tokenizer.from_pretrained(folder, model_max_length=block_size)
        with library_write(folder):
            tokenizer.save_pretrained(folder)  # adds tokenizer.json and tokenizer_config.json
    return None


def gpt2_vocabulary():
    """The files of GPT-2's vocabulary, {name: bytes}. Raises `UserError` if they are not available."""
    from tiktoken.load import read_file_cached

    get_tokenizer("gpt2")  # its error explains how to get the vocabulary
    try:
        return {
            name: read_file_cached(GPT2_VOCABULARY_URL + remote, sha256)
            for name, (remote, sha256) in GPT2_VOCABULARY.items()
        }
    except Exception as error:  # requests, SSL and proxies each have their own errors
        raise UserError(
            f"{GPT2_VOCABULARY_URL} could not be read ({type(error).__name__}); connect, or set TIKTOKEN_CACHE_DIR to a"
            " folder copied from a machine that has it"
        ) from error


@contextlib.contextmanager
def quiet_transformers():
    """The `transformers` library without its progress bars and warnings."""
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
