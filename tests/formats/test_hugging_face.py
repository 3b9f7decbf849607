"""Hugging Face's format, compared with `transformers`: reading, writing, and downloading from a local hub."""

import json
import logging
import os
import subprocess
import sys
import warnings

import pytest
import requests
import safetensors.torch
import torch
import transformers
from helpers import ROOT
from hub_server import serve
from models import (
    assert_close,
    assert_same_logits,
    assert_same_parameters,
    causal_masks,
    hugging_face_model,
    random_ids,
    refusal,
    small_gpt,
)

from formats import hugging_face
from formats.read import read
from inference.generate import GenerationConfig, generate
from inference.sampling import GREEDY
from model import GPT
from system.errors import UserError
from tokens.chat import encode_chat
from tokens.tokenizer import get_tokenizer

SHAPES = [(32, 128, 2, 2, 32), (48, 100, 3, 4, 64), (16, 257, 1, 3, 48)]  # the second and third are padded inside


@pytest.fixture
def folder(tmp_path):
    hugging_face_model().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


# ---- reading ----


@pytest.mark.parametrize("shape", SHAPES)
def test_read_model_has_the_logits_loss_and_gradients_of_transformers(tmp_path, shape):
    assert torch.get_float32_matmul_precision() == "highest"
    theirs = hugging_face_model(*shape)
    theirs.save_pretrained(tmp_path)
    ours = GPT.from_pretrained(str(tmp_path))
    T, V, n_layer = shape[:3]
    idx, targets = random_ids(3, T, vocab_size=V), random_ids(3, T, vocab_size=V, seed=2)
    logits = theirs(idx).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    assert_close(ours(idx), logits)
    our_loss = ours(idx, targets)
    our_loss.backward()
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    grads = {}
    for prefix, module in theirs.named_modules():
        for name, p in module.named_parameters(recurse=False):
            transposed = isinstance(module, transformers.pytorch_utils.Conv1D) and name == "weight"
            grads[f"{prefix}.{name}"] = p.grad.T if transposed else p.grad
    assert len(list(ours.named_parameters())) == 4 + 12 * n_layer
    for name, p in ours.named_parameters():
        grad = p.grad[:V] if name == "transformer.wte.weight" else p.grad
        assert_close(grad, grads[name], name)


def test_read_accepts_folders_of_every_version(folder, tmp_path):
    theirs = hugging_face_model()
    for name in ("pickled", "legacy", "hub"):
        (tmp_path / name).mkdir()
    torch.save(theirs.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    hub = {k: v.contiguous() for k, v in (theirs.state_dict() | causal_masks()).items() if k != "lm_head.weight"}
    hub = {k.removeprefix("transformer."): v for k, v in hub.items()}
    torch.save(hub, tmp_path / "legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(hub, tmp_path / "hub" / "model.safetensors")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    for name in ("hf", "pickled", "legacy", "hub", "parts"):
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())
        assert_same_logits(GPT.from_pretrained(str(tmp_path / name)), theirs)


def test_read_converts_half_precision_to_float32(tmp_path):
    theirs = hugging_face_model().bfloat16()
    theirs.save_pretrained(tmp_path)
    assert_same_logits(GPT.from_pretrained(str(tmp_path)), theirs.float())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 64),
        ("n_head", 5),
        ("n_layer", None),
    ],
)
def test_read_refuses_configs_of_another_function(folder, setting, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))
    assert setting in refusal(folder)


def test_read_refuses_damaged_and_incomplete_folders(folder):
    assert "name the folder" in refusal(folder / "model.safetensors")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])
    assert "model.safetensors is damaged" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json holds [], expected a JSON object" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    torch.save([torch.zeros(10**5)], folder / "pytorch_model.bin")
    assert "pytorch_model.bin is not a model" in refusal(folder)
    for content, words in (("{", "config.json is damaged"), ("[]", "config.json holds [], expected a JSON object")):
        (folder / "config.json").write_text(content)
        assert words in refusal(folder)
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


# ---- writing ----


def write(folder, model, tokenizer=None):
    return hugging_face.write(folder, model.config.shape, model.to_tensors(), tokenizer)


@pytest.mark.parametrize(("vocab_size", "tokenizer"), [(257, "byte"), (256, None)])
def test_written_folder_loads_in_transformers_without_a_warning(tmp_path, caplog, vocab_size, tokenizer):
    model = small_gpt(vocab_size=vocab_size).eval()
    missing = write(tmp_path / "hf", model, tokenizer)
    assert missing == (None if tokenizer else "the tokenizer's files: the model's tokenizer is unknown")
    transformers.logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(info.values()), info  # missing, unexpected, mismatched
    assert theirs.config.vocab_size == vocab_size
    assert theirs.generation_config.eos_token_id == (256 if tokenizer else None)
    assert_same_logits(model, theirs)


@pytest.mark.parametrize(("vocab_size", "tokenizer"), [(257, "byte"), (256, None)])
def test_written_folder_reads_back_as_the_same_model(tmp_path, vocab_size, tokenizer):
    model = small_gpt(vocab_size=vocab_size)
    write(tmp_path / "hf", model, tokenizer)
    model_file = read(str(tmp_path / "hf"))
    assert_same_parameters(GPT.from_file(model_file), model)
    assert (model_file.tokenizer, model_file.chat) == (tokenizer, False)
    modes = {file.stat().st_mode for file in (tmp_path / "hf").iterdir()}
    assert len(modes) == 1, "all files are as readable as config.json"


def test_write_adds_the_gpt2_tokenizer(tmp_path):
    try:
        ours = get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")
    assert write(tmp_path / "hf", small_gpt(vocab_size=50257, n_layer=1, n_embd=8), "gpt2") is None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Hello, I'm a language model,\n\n  12345 naïve 日本語 🤗\u2028\ttabs   and don't  "
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (len(theirs), theirs.eos_token_id) == (50257, 50256)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == 50257


def test_write_adds_a_byte_tokenizer_with_our_ids(tmp_path):
    ours = get_tokenizer("byte")
    assert write(tmp_path / "hf", small_gpt(vocab_size=257), "byte") is None
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "def f(x):\n\t return  'naïve 日本語 🤗' \0\x7f <0x41> \u2028 <|endoftext|>"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    every = list(range(257))
    assert theirs.decode([104, 256, 105]) == ours.decode([104, 256, 105]) == "h<|endoftext|>i"
    assert theirs.decode(every[:128]) == ours.decode(every[:128])
    assert (len(theirs), theirs.eos_token_id, theirs.model_max_length) == (257, 256, 32)


def test_written_byte_model_generates_text_in_a_pipeline(tmp_path):
    model = small_gpt(vocab_size=257).eval()
    write(tmp_path / "hf", model, "byte")
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "hf"), device="cpu")
    text = pipeline("def ", max_new_tokens=4, do_sample=False, return_full_text=False)[0]["generated_text"]
    ids = get_tokenizer("byte").encode("def ")
    for _ in range(4):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    assert text == get_tokenizer("byte").decode(ids[4:])


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_written_chat_model_gets_a_template_with_our_ids(tmp_path, name):
    try:
        ours = get_tokenizer(name)
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")
    model = small_gpt(vocab_size=ours.vocab_size, n_layer=1, n_embd=8)
    hugging_face.write(tmp_path / "hf", model.config.shape, model.to_tensors(), name, chat=True)
    assert read(str(tmp_path / "hf")).chat
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    turns = [("system", "Be  brief."), ("user", " ¿2+3?\n\n日本 "), ("assistant", "5"), ("user", "And 3<|endoftext|>?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for n, prompt in ((2, True), (3, False), (4, True)):
        given = theirs.apply_chat_template(messages[:n], add_generation_prompt=prompt)
        assert given["input_ids"] == encode_chat(messages[:n], ours)[0]


def test_chat_pipeline_continues_our_prompt_with_our_greedy_ids(tmp_path):
    model, ours = small_gpt(vocab_size=257, block_size=64).eval(), get_tokenizer("byte")
    hugging_face.write(tmp_path / "hf", model.config.shape, model.to_tensors(), "byte", chat=True)
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "hf"), device="cpu")
    messages = [{"role": "user", "content": "2 + 3?"}]
    theirs = pipeline(messages, max_new_tokens=4, do_sample=False, return_tensors=True)[0]["generated_token_ids"]
    prompt = encode_chat(messages, ours)[0]
    assert theirs == prompt + generate(model, [prompt], GenerationConfig(4, GREEDY, eot=256))[0]


def test_write_without_the_gpt2_vocabulary_leaves_its_files_out(tmp_path, monkeypatch):
    def unavailable(name):
        raise UserError("the GPT-2 vocabulary could not be loaded")

    monkeypatch.setattr(hugging_face, "get_tokenizer", unavailable)
    assert write(tmp_path / "hf", small_gpt(), "gpt2").startswith("the tokenizer's files: the GPT-2 vocabulary")
    files = {file.name for file in (tmp_path / "hf").iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


def test_write_leaves_the_gpt2_tokenizer_out_where_only_the_hubs_cache_has_it(tmp_path, monkeypatch):
    def refuse(*args):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(hugging_face, "get_tokenizer", lambda name: None)
    monkeypatch.setattr("tiktoken.load.read_file_cached", refuse)
    reason = write(tmp_path / "hf", small_gpt(), "gpt2")
    assert reason.startswith("the tokenizer's files: https://openaipublic.blob")
    assert "could not be read (ConnectionError)" in reason


def test_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face, "make_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "hf", small_gpt())
    assert not list(tmp_path.iterdir())


# ---- the hub ----


READ_NAMES = """if True:
    import sys
    from formats.read import read
    from system import errors
    @errors.command
    def main():
        for name in sys.argv[1:]:
            model_file = read(name)
            wpe = model_file.tensors()["transformer.wpe.weight"]
            print(model_file.source, model_file.tokenizer, wpe.sum().item(), "transformers" in sys.modules)
    main()"""


def read_in_new_process(*names, **environment):
    """Read models by name: the hub's library takes its settings from the environment when it is imported."""
    replaced = {"HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"}
    environment |= {name: value for name, value in os.environ.items() if name not in replaced}
    command = [sys.executable, "-c", READ_NAMES, *names]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_pretrained_name_is_downloaded_once_and_an_unreachable_hub_is_a_one_line_error(tmp_path):
    theirs = hugging_face_model(vocab_size=50257, n_embd=8, n_layer=1, n_head=2)
    theirs.save_pretrained(tmp_path / "gpt2")
    line = f"gpt2 gpt2 {theirs.transformer.wpe.weight.sum().item()} False\n"
    files = {file.name: file.read_bytes() for file in (tmp_path / "gpt2").iterdir()}
    with serve("openai-community/gpt2", files, repo_type="models") as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        first = read_in_new_process("gpt2", **environment)
        assert first.stdout == line, first.stderr
        sent = [path.rpartition("/")[2] for method, path, _ in server.log if method == "GET" and "/resolve/" in path]
        assert sorted(sent) == ["config.json", "model.safetensors"]
    second = read_in_new_process("gpt2", "gpt2-xl", **environment)  # the hub is down now
    assert (second.returncode, second.stdout) == (2, line), second.stderr
    assert second.stderr.startswith("error: gpt2-xl could not be downloaded")
    assert "HF_HOME" in second.stderr
    assert second.stderr.count("\n") == 1
