"""export.py: what each --to writes, what --check reports, and which commands it refuses."""

import json
import random

import numpy as np
import pytest
from helpers import file_size_limit, write_hellaswag
from hostile import flip
from hub_server import serve
from huggingface_hub import constants
from models import assert_same_parameters, needs_gguf, save_checkpoint, small_gpt

import export
from formats import llmc
from model import GPT
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

SHAPE = {"block_size": 24, "vocab_size": 257}
KINDS = ["hf", "llmc", pytest.param("gguf", marks=needs_gguf)]


@pytest.fixture
def model():
    return small_gpt(**SHAPE).eval()


@pytest.fixture
def path(model, tmp_path):
    """The checkpoint of `model`."""
    return save_checkpoint(tmp_path / "model_00250.pt", model)


def run(*arguments):
    """export.py's exit code."""
    with pytest.raises(SystemExit) as caught:
        export.main([str(a) for a in arguments])
    return caught.value.code or 0


def refusal(capsys, *arguments):
    """The one line with which export.py refuses a command."""
    assert run(*arguments) == 2
    line = capsys.readouterr().err.rpartition("\r")[2]  # after a progress bar
    assert line.count("\n") == 1
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_export_writes_a_model_that_reads_back(model, path, tmp_path, capsys, kind):
    assert run(path, "--to", kind, "--out", tmp_path / "new" / "out") == 0
    assert (
        f"{path} (step 7): {sum(t.numel() for t in model.to_tensors().values()):,} parameters"
        in capsys.readouterr().out
    )
    assert_same_parameters(GPT.from_pretrained(str(tmp_path / "new" / "out")), model)


@pytest.mark.parametrize("kind", KINDS)
def test_export_never_overwrites(path, tmp_path, capsys, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for out in ("folder", "file"):
        assert "exists already" in refusal(capsys, path, "--to", kind, "--out", tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"
    assert {file.name for file in tmp_path.iterdir()} == {"model_00250.pt", "folder", "file"}


@pytest.mark.parametrize("kind", [*KINDS, "llmc-bf16", "llmc-tokenizer", "llmc-hellaswag"])
def test_export_on_a_full_disk_is_one_line_and_leaves_nothing(path, tmp_path, capsys, kind):
    questions = write_hellaswag(tmp_path / "questions.jsonl", examples=200)
    before = {file.name for file in tmp_path.iterdir()}
    source = {"llmc-tokenizer": "byte", "llmc-hellaswag": questions}.get(kind, path)
    with file_size_limit(1024):
        line = refusal(capsys, source, "--to", kind, "--out", tmp_path / "out")
    assert "too large" in line or kind == "llmc-hellaswag"  # which may lack GPT-2's tokenizer
    assert {file.name for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("out", ["", ".", "..", "/", "new/..", "/dev/full", "FILE/x", "FILE/x/y"])
@pytest.mark.parametrize("kind", KINDS)
def test_export_refuses_an_impossible_out_before_it_reads_the_model(path, tmp_path, capsys, out, kind):
    out = out.replace("FILE", path)
    line = refusal(capsys, tmp_path / "no_model", "--to", kind, "--out", out)
    assert "no such model" not in line
    assert out in line


def test_check_of_a_damaged_folder_is_one_line(path, tmp_path, capsys):
    folder = tmp_path / "hf"
    run(path, "--to", "hf", "--out", folder)
    weights, config = (folder / "model.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())
    capsys.readouterr()
    for change in (
        {"n_layer": 10**9},
        {"n_head": 5},
        {"n_inner": 10**12},
        {"model_type": "llama"},
        {"model_type": 3},
        {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}, "model_type": "x"},
        {"n_embd": "x"},
        {"layer_norm_epsilon": "x"},
        {"activation_function": "no_such_function"},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        assert "hf" in refusal(capsys, path, "--check", folder)
    (folder / "config.json").write_text(json.dumps(config | {"num_labels": 10**9, "num_hidden_layers": 10**9}))
    assert run(path, "--check", folder) == 0, "what does not change the function is ignored"
    (folder / "config.json").write_text(json.dumps(config))
    for length in (0, 8, 100, len(weights) // 2, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:length])
        assert "hf" in refusal(capsys, path, "--check", folder)
    generator = random.Random(0)
    for _ in range(20):
        header = flip(weights[:2000], generator)
        (folder / "model.safetensors").write_bytes(header + weights[2000:])
        assert run(path, "--check", folder) in (0, 1, 2)


def test_debug_state_takes_the_first_tokens_of_a_shard(model, path, tmp_path, capsys):
    tokens = np.arange(1000, dtype="<u2") % 250
    np.save(tmp_path / "val.npy", tokens)
    np.save(tmp_path / "large_val.npy", tokens + 200)
    arguments = (path, "--to", "llmc-bf16", "--out", tmp_path / "gpt2_bf16.bin", "--debug_state", "--shard")
    assert "val.npy" in refusal(capsys, *arguments, tmp_path / "no_val.npy")
    assert "ids below 257" in refusal(capsys, *arguments, tmp_path / "large_val.npy")
    assert not (tmp_path / "gpt2_bf16.bin").exists()
    assert run(*arguments, tmp_path / "val.npy") == 0
    state = llmc.read_debug_state(tmp_path / "gpt2_debug_state.bin", model.config.shape)
    assert state.inputs.shape == state.targets.shape == (4, 24)
    assert state.inputs.flatten().tolist() == tokens[:96].tolist()
    assert state.targets.flatten().tolist() == tokens[1:97].tolist()


def test_export_tokenizer_writes_every_token(tmp_path, capsys):
    assert run("byte", "--to", "llmc-tokenizer", "--out", tmp_path / "byte.bin") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'byte.bin'}: 257 tokens of byte\n"
    assert (tmp_path / "byte.bin").read_bytes().endswith(b"\1\xff\x0d<|endoftext|>")
    assert "expected one of gpt2, byte" in refusal(capsys, "x", "--to", "llmc-tokenizer", "--out", tmp_path / "x")


def test_export_hellaswag_encodes_contexts_and_endings(tmp_path, capsys, monkeypatch):
    try:
        encode = get_tokenizer("gpt2").encode
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")
    written = []
    monkeypatch.setattr(llmc, "write_eval", lambda path, examples: written.extend(examples) or len(written))
    endings = ["is wet.", "runs", "eats\u2014", "naps."]
    records = [{"ind": 4, "ctx": "A man sits.  He", "label": 3, "endings": endings}]
    records.append(records[0] | {"ind": 9, "label": 1, "ctx": "She"})
    (tmp_path / "val.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert run(tmp_path / "val.jsonl", "--to", "llmc-hellaswag", "--out", tmp_path / "val.bin") == 0
    ids = [encode(" " + ending) for ending in endings]
    assert written == [(3, encode("A man sits.  He"), ids), (1, encode("She"), ids)]
    monkeypatch.undo()
    (tmp_path / "bad.jsonl").write_text(json.dumps(records[0]) + '\n{"ctx": "x"}\n')
    line = refusal(capsys, tmp_path / "bad.jsonl", "--to", "llmc-hellaswag", "--out", tmp_path / "bad.bin")
    assert "bad.jsonl, line 2" in line
    assert not (tmp_path / "bad.bin").exists()


def test_check_finds_no_difference_between_a_model_and_its_exports(path, tmp_path, capsys):
    run(path, "--to", "hf", "--out", tmp_path / "hf")
    run(path, "--to", "llmc", "--out", tmp_path / "gpt2.bin", "--debug_state")
    for other in (path, tmp_path, tmp_path / "hf", tmp_path / "gpt2.bin", tmp_path / "gpt2_debug_state.bin"):
        assert run(path, "--check", other) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("the models agree")


def test_check_finds_a_folder_whose_config_means_another_function(path, tmp_path, capsys):
    """`scale_attn_weights = false` is attention without 1/√d, with the same weights."""
    run(path, "--to", "hf", "--out", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"scale_attn_weights": False}))
    assert run(path, "--check", tmp_path / "hf") == 1
    out = capsys.readouterr().out
    assert "run by transformers" in out
    assert out.endswith("the models first differ at block 0 attention: its tensors agree, its computation differs\n")


def test_push_uploads_the_folder_to_a_new_private_repository(path, tmp_path, monkeypatch, capsys):
    files = {}
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    with serve("me/tiny", files, repo_type="models") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert run(path, "--to", "hf", "--out", tmp_path / "hf", "--push", "me/tiny") == 0
        assert "me/tiny: uploaded, private" in capsys.readouterr().out
        assert (server.created["name"], server.created["organization"]) == ("tiny", "me")
        assert server.created["visibility"] == "private"
        assert files == {file.name: file.read_bytes() for file in (tmp_path / "hf").iterdir()}
        assert 'pipeline("text-generation", "me/tiny")' in files["README.md"].decode()
        again = refusal(capsys, path, "--to", "hf", "--out", tmp_path / "again", "--push", "me/tiny", "--public")
        assert "it exists already on the hub" in again


def test_push_that_the_hub_does_not_take_is_one_line_and_keeps_the_folder(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    arguments = (path, "--to", "hf", "--push", "me/tiny", "--out")
    with serve("me/tiny", {}, repo_type="models") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        assert "set HF_TOKEN to a token that may write there" in refusal(capsys, *arguments, tmp_path / "a")
        server.faults["down"] = True
        line = refusal(capsys, *arguments, tmp_path / "b")
    assert f"the connection to {server.url} failed" in line
    assert f"`hf upload me/tiny {tmp_path / 'b'}`" in line
    assert (tmp_path / "a" / "model.safetensors").exists()
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_export_refuses_incomplete_and_contradictory_commands(path, tmp_path, capsys):
    assert "name a model" in refusal(capsys)
    assert "nothing to do" in refusal(capsys, path)
    assert "--out PATH is missing" in refusal(capsys, path, "--to", "hf")
    assert "--debug_state requires" in refusal(capsys, path, "--to", "hf", "--out", tmp_path / "x", "--debug_state")
    assert "--push requires --to hf" in refusal(capsys, path, "--to", "llmc", "--out", tmp_path / "x", "--push", "me/x")
    for name in ("x", "me/--x", "a/b/c", "me/"):
        assert "expected OWNER/NAME" in refusal(capsys, path, "--to", "hf", "--out", tmp_path / "x", "--push", name)
    assert "--public requires --push" in refusal(capsys, path, "--to", "hf", "--out", tmp_path / "x", "--public")
    assert "--dtype requires --to gguf" in refusal(
        capsys, path, "--to", "hf", "--out", tmp_path / "x", "--dtype", "float16"
    )
    assert "--shard requires --debug_state" in refusal(capsys, path, "--check", path, "--shard", "x.npy")
    assert "use one of the two" in refusal(capsys, "byte", "--to", "llmc-tokenizer", "--check", path)
    assert "no such model" in refusal(capsys, tmp_path / "no.pt", "--to", "hf", "--out", tmp_path / "x")
    assert "expected one of" in refusal(capsys, path, "--to", "onnx", "--out", tmp_path / "x")
