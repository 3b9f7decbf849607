"""What is written for other programs: read back by `transformers`, and by a reader written here from llm.c's layout."""

import dataclasses
import json
import logging
import os
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import export
from formats import checkpoint, llmc, weights
from inference import compare
from model import GPT, CausalSelfAttention, GPTConfig
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

SHAPES = {  # name → shape: a byte model and one of another vocabulary, which needs no padding
    "bytes": GPTConfig(block_size=24, vocab_size=257, n_layer=3, n_head=2, n_embd=32),
    "even": GPTConfig(block_size=70, vocab_size=256, n_layer=2, n_head=4, n_embd=48),
}
TOKENIZERS = {"bytes": "byte", "even": None}
LAYERED = (  # llm.c's order of what follows wte and wpe: name here, shape in units of C
    *(("ln_1.weight", (1,)), ("ln_1.bias", (1,)), ("attn.c_attn.weight", (3, 1)), ("attn.c_attn.bias", (3,))),
    *(("attn.c_proj.weight", (1, 1)), ("attn.c_proj.bias", (1,)), ("ln_2.weight", (1,)), ("ln_2.bias", (1,))),
    *(("mlp.c_fc.weight", (4, 1)), ("mlp.c_fc.bias", (4,)), ("mlp.c_proj.weight", (1, 4)), ("mlp.c_proj.bias", (1,))),
)


@pytest.fixture(params=SHAPES)
def trained(request, tmp_path):
    """(model, path of its checkpoint): every parameter random, none at its special starting value."""
    torch.manual_seed(0)
    model = GPT(SHAPES[request.param]).eval()
    with torch.no_grad():
        for p in weights.tensors_of(model).values():
            p.add_(0.1 * torch.randn_like(p))
    state = {"model": model.state_dict(), "model_config": dataclasses.asdict(model.config), "step": 250}
    checkpoint.save(tmp_path / "model_00250.pt", state | {"tokenizer": TOKENIZERS[request.param]})
    return model, str(tmp_path / "model_00250.pt")


def run(*arguments):
    """export.py's exit code."""
    with pytest.raises(SystemExit) as caught:
        export.main([str(a) for a in arguments])
    return caught.value.code or 0


def mistake(capsys, *arguments):
    """The one line with which export.py refuses."""
    assert run(*arguments) == 2
    line = capsys.readouterr().err.rpartition("\r")[2]  # behind a progress bar
    assert line.count("\n") == 1
    return line


def ids(*shape, vocab_size=256, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_same_weights(a, b):
    assert a.config == b.config
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(p, q), name


# Hugging Face ---------------------------------------------------------------------------------------------------------


def test_hugging_face_loads_the_folder_without_a_word_and_computes_the_same(trained, tmp_path, caplog):
    model, path = trained
    assert run(path, "--to", "hf", "--out", tmp_path / "hf") == 0
    transformers.logging.enable_propagation()
    with warnings.catch_warnings(), caplog.at_level(logging.INFO):
        warnings.simplefilter("error")
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any(info.values()), info  # missing, unexpected, mismatched
    assert theirs.config.vocab_size == model.config.vocab_size
    idx = ids(2, 24)
    with torch.no_grad():
        ours, logits = model(idx), theirs(idx).logits
    assert (ours - logits).abs().max() <= 1e-5 * logits.abs().max()
    assert theirs.generation_config.eos_token_id == (256 if model.config.vocab_size == 257 else None)


def test_a_folder_read_back_is_the_same_model(trained, tmp_path):
    model, path = trained
    run(path, "--to", "hf", "--out", tmp_path / "hf")
    loaded = weights.load_model(str(tmp_path / "hf"))
    assert_same_weights(loaded.model, model)
    assert loaded.tokenizer == (None if model.config.vocab_size == 256 else "byte")
    everyone = (tmp_path / "hf" / "config.json").stat().st_mode
    assert {file.stat().st_mode for file in (tmp_path / "hf").iterdir()} == {everyone}  # none is private


def gpt2_bpe():
    try:
        return get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")


def save_gpt2_sized(path, n_embd=8):
    config = GPTConfig(block_size=16, n_layer=1, n_head=1, n_embd=n_embd)
    model = GPT(config).eval()
    state = {"model": model.state_dict(), "model_config": dataclasses.asdict(config), "tokenizer": "gpt2", "step": 1}
    checkpoint.save(path, state)
    return model


def test_a_gpt2_folder_comes_with_its_tokenizer(tmp_path):
    ours = gpt2_bpe()
    save_gpt2_sized(tmp_path / "model.pt")
    assert run(tmp_path / "model.pt", "--to", "hf", "--out", tmp_path / "hf") == 0
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "Hello, I'm a language model,\n\n  12345 naïve 日本語 🤗\u2028\ttabs   and don't  "
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert (len(theirs), theirs.eos_token_id) == (50257, 50256)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == 50257


def test_without_the_vocabulary_the_model_is_still_written(tmp_path):
    """Offline and without a cache: the weights are there, and one line says what isn't."""
    save_gpt2_sized(tmp_path / "model.pt")
    environment = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "export.py", tmp_path / "model.pt", "--to=hf", f"--out={tmp_path / 'new' / 'hf'}"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "left out: the tokenizer's files" in done.stdout
    files = {file.name for file in (tmp_path / "new" / "hf").iterdir()}
    assert files == {"config.json", "generation_config.json", "model.safetensors"}


def test_nothing_is_overwritten_and_nothing_is_left_half_done(trained, tmp_path, capsys, monkeypatch):
    _, path = trained
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    for kind in ("hf", "llmc"):
        for out in ("there", "file"):
            assert "is there already" in mistake(capsys, path, "--to", kind, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"
    monkeypatch.setattr(weights, "hugging_face_config", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export.main([path, "--to", "hf", "--out", str(tmp_path / "hf")])
    assert {file.name for file in tmp_path.iterdir()} == {"model_00250.pt", "there", "file"}


# llm.c ----------------------------------------------------------------------------------------------------------------


def rounded_up(vocab_size):
    return (vocab_size + 127) // 128 * 128


def parse_tensors(data, config, bytes_each):
    """llm.c's parameters, in its order, as the format describes them: {name here: float32 array}."""
    V, C, L, T = config["vocab_size"], config["n_embd"], config["n_layer"], config["block_size"]
    tensors, at = {}, 0

    def take(*shape):
        nonlocal at
        count = int(np.prod(shape))
        raw = data[at : at + count * bytes_each]
        at += count * bytes_each
        if bytes_each == 2:  # bfloat16 is the upper half of a float32
            return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        return np.frombuffer(raw, "<f4").reshape(shape)

    wte = take(rounded_up(V), C)
    assert not wte[V:].any()
    tensors["wte.weight"], tensors["wpe.weight"] = wte[:V], take(T, C)
    for name, units in LAYERED:
        each = take(L, *(unit * C for unit in units))
        tensors |= {f"h.{layer}.{name}": each[layer] for layer in range(L)}
    tensors["ln_f.weight"], tensors["ln_f.bias"] = take(C), take(C)
    assert at == len(data)
    return tensors


def parse_model(path):
    """(config, tensors) of a gpt2_124M.bin."""
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[0] == 20240326
    assert not any(header[8:])
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    config = dict(zip(names, header[2:7], strict=True))
    assert header[7] == rounded_up(config["vocab_size"])
    return config, parse_tensors(data[1024:], config, {3: 4, 5: 2}[header[1]])


def parse_debug_state(path, config):
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == (20240327, 2)
    assert not any(header[4:])
    B, T = header[2:4]
    V = config["vocab_size"]
    ids = np.frombuffer(data, "<i4", 2 * B * T, 1024).reshape(2, B, T)
    at = 1024 + ids.nbytes
    logits = np.frombuffer(data, "<f4", B * T * V, at).reshape(B, T, V)
    at += logits.nbytes
    (loss,) = struct.unpack_from("<f", data, at)
    return ids[0], ids[1], logits, loss, parse_tensors(data[at + 4 :], config, 4)


def as_transformers(config, tensors):
    """`transformers`' GPT-2 with the tensors of a parsed file."""
    shape = {"n_positions" if k == "block_size" else k: v for k, v in config.items()}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for prefix, module in model.transformer.named_modules():
            for name, p in module.named_parameters(recurse=False):
                tensor = torch.from_numpy(tensors[f"{prefix}.{name}"].copy())
                p.copy_(tensor.T if isinstance(module, transformers.pytorch_utils.Conv1D) and p.dim() == 2 else tensor)
    return model


@pytest.mark.parametrize(("kind", "dtype"), [("llmc", torch.float32), ("llmc-bf16", torch.bfloat16)])
def test_llmc_weights_have_its_layout(trained, tmp_path, kind, dtype):
    model, path = trained
    assert run(path, "--to", kind, "--out", tmp_path / "gpt2.bin") == 0
    config, tensors = parse_model(tmp_path / "gpt2.bin")
    assert config == {name: value for name, value in dataclasses.asdict(model.config).items() if name != "dropout"}
    expected = weights.tensors_of(model)
    assert {f"transformer.{name}" for name in tensors} == expected.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, expected[f"transformer.{name}"].to(dtype).float().numpy()), name


@pytest.mark.parametrize(("kind", "dtype"), [("llmc", torch.float32), ("llmc-bf16", torch.bfloat16)])
def test_llmc_weights_read_back_are_the_same_model(trained, tmp_path, kind, dtype):
    model, path = trained
    run(path, "--to", kind, "--out", tmp_path / "gpt2.bin")
    loaded = weights.load_model(str(tmp_path / "gpt2.bin"))
    assert loaded.tokenizer == (None if model.config.vocab_size == 256 else "byte")
    assert_same_weights(loaded.model, model.to(dtype).float())
    run(tmp_path / "gpt2.bin", "--to", kind, "--out", tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "gpt2.bin").read_bytes()


def test_llmc_debug_state_passes_the_checks_of_its_own_test(trained, tmp_path):
    """Weights and batch from the two files into another implementation: its logits, loss and gradients are the file's.

    llm.c allows 0.01 for logits and loss, 0.02 for gradients; here it is 1e-5 of each tensor's scale.
    """
    _, path = trained
    assert run(path, "--to", "llmc", "--out", tmp_path / "gpt2_124M.bin", "--debug_state") == 0
    config, tensors = parse_model(tmp_path / "gpt2_124M.bin")
    inputs, targets, logits, loss, grads = parse_debug_state(tmp_path / "gpt2_124M_debug_state.bin", config)
    assert inputs.shape == (4, min(64, config["block_size"]))
    assert np.array_equal(inputs.ravel()[1:], targets.ravel()[:-1])  # one stretch of text
    theirs = as_transformers(config, tensors)
    computed = theirs(torch.from_numpy(inputs.astype("int64"))).logits
    labels = torch.from_numpy(targets.astype("int64")).flatten()
    computed_loss = torch.nn.functional.cross_entropy(computed.flatten(0, 1), labels)
    computed_loss.backward()
    assert np.abs(computed.detach().numpy() - logits).max() <= 1e-5 * np.abs(logits).max()
    assert computed_loss.item() == pytest.approx(loss, rel=1e-6)
    for prefix, module in theirs.transformer.named_modules():
        for name, p in module.named_parameters(recurse=False):
            conv1d = isinstance(module, transformers.pytorch_utils.Conv1D) and p.dim() == 2
            expected = (p.grad.T if conv1d else p.grad).numpy()
            gap = np.abs(grads[f"{prefix}.{name}"] - expected).max()
            assert gap <= 1e-5 * np.abs(expected).max(), f"{prefix}.{name}"


def test_the_debug_state_of_a_shard_is_its_first_tokens(trained, tmp_path, capsys):
    model, path = trained
    tokens = np.arange(1000, dtype="<u2") % 250
    np.save(tmp_path / "val.npy", tokens)
    out = ("--to", "llmc-bf16", "--out", tmp_path / "gpt2_bf16.bin", "--debug_state", "--shard")
    assert "val.npy" in mistake(capsys, path, *out, tmp_path / "no_val.npy")
    assert run(path, *out, tmp_path / "val.npy") == 0
    state = llmc.read_debug_state(tmp_path / "gpt2_debug_state.bin", model.config)
    count = state.inputs.numel()
    assert state.inputs.flatten().tolist() == tokens[:count].tolist()
    assert state.targets.flatten().tolist() == tokens[1 : count + 1].tolist()
    np.save(tmp_path / "large_val.npy", tokens + 200)
    (tmp_path / "gpt2_bf16.bin").unlink()
    (tmp_path / "gpt2_debug_state.bin").unlink()
    assert f"ids below {model.config.vocab_size}" in mistake(capsys, path, *out, tmp_path / "large_val.npy")
    assert not (tmp_path / "gpt2_bf16.bin").exists()


def parse_tokenizer(path):
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == (20240328, 2)
    assert not any(header[4:])
    tokens, at = [], 1024
    while at < len(data):
        tokens.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    assert (at, len(tokens)) == (len(data), header[2])
    assert min(map(len, tokens)) > 0
    return tokens, header[3]


def test_llmc_tokenizer_spells_every_token(tmp_path, capsys):
    assert run("byte", "--to", "llmc-tokenizer", "--out", tmp_path / "byte.bin") == 0
    tokens, eot = parse_tokenizer(tmp_path / "byte.bin")
    assert tokens == [bytes((i,)) for i in range(256)] + [b"<|endoftext|>"]
    assert eot == 256
    assert "expected one of gpt2, byte" in mistake(capsys, "x", "--to", "llmc-tokenizer", "--out", tmp_path / "x")


def test_llmc_tokenizer_of_gpt2_decodes_what_tiktoken_encodes(tmp_path):
    encoded = gpt2_bpe().encode("Hello, naïve 日本語\n")
    assert run("gpt2", "--to", "llmc-tokenizer", "--out", tmp_path / "gpt2.bin") == 0
    tokens, eot = parse_tokenizer(tmp_path / "gpt2.bin")
    assert b"".join(tokens[i] for i in encoded).decode() == "Hello, naïve 日本語\n"
    assert (len(tokens), eot, tokens[50256]) == (50257, 50256, b"<|endoftext|>")


def parse_eval(path):
    """A HellaSwag .bin as llm.c reads it: [(label, context, endings)]."""
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[:2] == (20240522, 1)
    assert not any(header[4:])
    examples, at, longest = [], 1024, 0
    for index in range(header[2]):
        start, length = struct.unpack_from("<2H", data, at)
        values = list(struct.unpack_from(f"<{length // 2}H", data, at))
        assert start == 65535
        assert values[2] == index
        rest, rows = values[5:], []
        while rest:
            count = rest.pop(0)
            rows.append(rest[:count])
            del rest[:count]
        assert values[4] == len(rows) - 1 == 4
        examples.append((values[3], rows[0], rows[1:]))
        at, longest = at + length, max(longest, length)
    assert (at, longest) == (len(data), header[3])
    return examples


def test_llmc_evaluation_file_holds_every_example(tmp_path):
    examples = [(2, [1, 2, 3], [[4], [5, 6], [7], [8, 9, 10]]), (0, [50256], [[1], [2], [3], [4]])]
    assert llmc.write_eval(tmp_path / "eval.bin", examples) == 2
    assert parse_eval(tmp_path / "eval.bin") == examples
    with pytest.raises(UserError, match="example 0 doesn't fit the format"):
        llmc.write_eval(tmp_path / "long.bin", [(0, [1] * 32763, [[1], [2], [3], [4]])])
    with pytest.raises(UserError, match="no examples"):
        llmc.write_eval(tmp_path / "none.bin", [])


def test_hellaswag_becomes_an_evaluation_file(tmp_path, capsys):
    encode = gpt2_bpe().encode
    example = {"ctx": "A man sits.  He", "label": 3, "endings": ["is wet.", "runs", "eats\u2014", "naps."]}
    lines = [example, example | {"label": "1", "ctx": "She"}]
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(tmp_path / "val.jsonl", "--to", "llmc-hellaswag", "--out", tmp_path / "val.bin") == 0
    endings = [encode(" " + ending) for ending in example["endings"]]
    assert parse_eval(tmp_path / "val.bin") == [
        (3, encode("A man sits.  He"), endings),
        (1, encode("She"), endings),
    ]
    (tmp_path / "bad.jsonl").write_text(json.dumps(example) + '\n{"ctx": "x"}\n')
    line = mistake(capsys, tmp_path / "bad.jsonl", "--to", "llmc-hellaswag", "--out", tmp_path / "bad.bin")
    assert "bad.jsonl, line 2" in line
    assert not (tmp_path / "bad.bin").exists()


def test_damaged_and_mislabelled_llmc_files_are_refused(trained, tmp_path, capsys):
    _, path = trained
    out = tmp_path / "gpt2.bin"
    run(path, "--to", "llmc", "--out", out, "--debug_state")
    state = tmp_path / "gpt2_debug_state.bin"
    whole, whole_state = out.read_bytes(), state.read_bytes()

    def complaint(content, file=out):
        file.write_bytes(content)
        arguments = ("--to", "hf", "--out", tmp_path / "hf") if file == out else ("--check", state)
        line = mistake(capsys, path if file == state else out, *arguments)
        assert str(file) in line
        return line

    def with_header(index, value, content=whole):
        return content[: 4 * index] + struct.pack("<i", value) + content[4 * index + 4 :]

    assert "truncated" in complaint(whole[:-1])
    assert "truncated" in complaint(whole[:1000])
    assert "too long" in complaint(whole + b"\0")
    assert "mislabelled" in complaint(with_header(1, 5))  # says bfloat16
    assert "version 1, expected 3 or 5" in complaint(with_header(1, 1))
    assert "n_layer = -1" in complaint(with_header(4, -1))
    assert "mislabelled" in complaint(with_header(4, 2**31 - 1))
    assert "padded vocabulary 5" in complaint(with_header(7, 5))
    assert "is a token shard of llm.c" in complaint(with_header(0, 20240520))
    assert "is not a model" in complaint(with_header(0, 1))
    out.write_bytes(whole)
    assert "truncated" in complaint(whole_state[:-4], state)
    assert "version 1, expected 2" in complaint(with_header(1, 1, whole_state), state)
    assert "a batch of 4×1000" in complaint(with_header(3, 1000, whole_state), state)
    assert "holds ids from" in complaint(with_header(256, 300, whole_state), state)


# Parity ---------------------------------------------------------------------------------------------------------------


def verdict(capsys):
    return capsys.readouterr().out.rstrip().rpartition("\n")[2]


def test_the_report_finds_nothing_between_a_model_and_its_exports(trained, tmp_path, capsys):
    _, path = trained
    run(path, "--to", "hf", "--out", tmp_path / "hf")
    run(path, "--to", "llmc", "--out", tmp_path / "gpt2.bin", "--debug_state")
    for other in (path, tmp_path / "hf", tmp_path / "gpt2.bin", tmp_path / "gpt2_debug_state.bin"):
        assert run(path, "--check", other) == 0
        assert verdict(capsys).startswith("they agree")


@pytest.mark.parametrize(
    "wrong",
    [
        ("transformer.wpe.weight", (23, 1), "embeddings"),
        ("transformer.h.0.ln_1.bias", (3,), "block 0 attention"),
        ("transformer.h.1.attn.c_proj.weight", (2, 5), "block 1 attention"),
        ("transformer.h.1.mlp.c_fc.weight", (7, 3), "block 1 MLP"),
        ("transformer.ln_f.weight", (0,), "final norm"),
    ],
)
def test_the_report_finds_a_single_wrong_weight(trained, tmp_path, capsys, wrong):
    model, path = trained
    name, index, stage = wrong
    with torch.no_grad():
        dict(model.named_parameters())[name][index] += 0.05
    llmc.write_model(tmp_path / "wrong.bin", model, torch.float32)
    assert run(path, "--check", tmp_path / "wrong.bin") == 1
    out = capsys.readouterr().out
    assert "tensors: 1 of" in out
    assert out.rstrip().endswith(f"they first part at {stage}: its {name} differs at {list(index)}")


def test_the_report_finds_a_wrong_weight_that_no_id_reaches(trained):
    model, path = trained
    other = weights.load_model(path).model
    with torch.no_grad():
        other.transformer.wpe.weight[20, 0] += 1e-3
    lines, parted = compare.report(model, other, ids(2, 16), 1e-5)
    assert parted
    assert lines[-1].startswith("they part at transformer.wpe.weight[20, 0], though no stage shows it")


def test_the_report_finds_a_missing_scale_in_a_folder(trained, tmp_path, capsys):
    """Hugging Face's `scale_attn_weights = false` is attention without its 1/√d, on the very same weights."""
    _, path = trained
    run(path, "--to", "hf", "--out", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"scale_attn_weights": False}))
    assert run(path, "--check", tmp_path / "hf") == 1
    out = capsys.readouterr().out
    assert "tensors: 0 of" in out
    assert out.rstrip().endswith("they first part at block 0 attention: its tensors agree, its computation differs")


class Unscaled(CausalSelfAttention):
    """A port's mistake: no 1/√d."""

    def forward(self, x, cache=None, layer=None):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def test_the_report_finds_a_missing_scale_in_a_port(trained, tmp_path, capsys):
    """In one block only, by its stages; and from a debug state alone, by the logits."""
    model, path = trained
    port = weights.load_model(path).model
    port.transformer.h[1].attn.__class__ = Unscaled
    lines, parted = compare.report(model, port, ids(2, 16), 1e-5)
    assert parted
    assert lines[-1] == "they first part at block 1 attention: its tensors agree, its computation differs"
    llmc.write_debug_state(tmp_path / "port_debug_state.bin", port, ids(2, 16), ids(2, 16, seed=2))
    assert run(path, "--check", tmp_path / "port_debug_state.bin") == 1
    assert verdict(capsys).startswith("they first part at logits")


def test_the_report_finds_the_first_wrong_gradient(trained):
    model, _ = trained
    state = llmc.debug_state(model, ids(2, 16), ids(2, 16, seed=2))
    for layer in (0, 1):  # the backward pass comes to block 1 first
        state.grads[f"transformer.h.{layer}.mlp.c_fc.bias"][3] += 0.1
    lines, parted = compare.report_state(model, state, 1e-5)
    assert parted
    assert lines[-1] == "they first part at the gradient of transformer.h.1.mlp.c_fc.bias, at [3]"


def test_models_of_different_shape_are_not_compared(trained, tmp_path, capsys):
    model, path = trained
    llmc.write_model(tmp_path / "deep.bin", GPT(dataclasses.replace(model.config, n_layer=4)), torch.float32)
    assert "different shapes" in mistake(capsys, path, "--check", tmp_path / "deep.bin")
    llmc.write_model(tmp_path / "long.bin", GPT(dataclasses.replace(model.config, block_size=8)), torch.float32)
    assert "transformer.wpe.weight has shape" in mistake(capsys, path, "--check", tmp_path / "long.bin")


def test_commands_that_ask_for_nothing_are_refused(trained, tmp_path, capsys):
    _, path = trained
    assert "name a model" in mistake(capsys)
    assert "say what to do" in mistake(capsys, path)
    assert "--out PATH is missing" in mistake(capsys, path, "--to", "hf")
    assert "--debug_state goes with" in mistake(capsys, path, "--to", "hf", "--out", tmp_path / "x", "--debug_state")
    assert "--shard goes with --debug_state" in mistake(capsys, path, "--check", path, "--shard", "x.npy")
    assert "is about none" in mistake(capsys, "byte", "--to", "llmc-tokenizer", "--check", path)
    assert "no such model" in mistake(capsys, tmp_path / "no.pt", "--to", "hf", "--out", tmp_path / "x")
    assert "expected one of" in mistake(capsys, path, "--to", "onnx", "--out", tmp_path / "x")
