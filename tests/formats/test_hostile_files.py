"""Damaged and hostile model files end in one line: no traceback, no hang, no memory that the file does not have."""

import json
import os
import random
import reprlib
import struct
import zipfile

import pytest
import torch
from hostile import TINY, flip, make_targets, model_target, nanogpt_state, peak_bytes, refused, write_folder
from models import assert_same_parameters, needs_gguf, refusal, save_checkpoint, small_gpt

from formats import checkpoint, pickle_check
from formats.torch_file import safe_load
from model import GPT
from system.errors import UserError

FORMATS = (
    *("checkpoint", "nanoGPT", "torch before 1.6", "safetensors", "config.json", "pytorch_model.bin", "index.json"),
    *("llm.c", "debug state", "hellaswag"),
)
GB = 1 << 30


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return make_targets(tmp_path_factory.mktemp("targets"))


@pytest.fixture
def model():
    return small_gpt(**TINY).eval()


@pytest.fixture
def folder(model, tmp_path):
    return write_folder(tmp_path / "hf", model)


@pytest.mark.parametrize("name", [*FORMATS, pytest.param("GGUF", marks=needs_gguf)])
def test_read_of_flipped_bits_is_a_model_or_one_line(targets, name):
    target = targets[name]
    content, generator, before = target.path.read_bytes(), random.Random(name), peak_bytes()
    assert refused(target) is None
    lines = set()
    for _ in range(30):
        target.path.write_bytes(flip(content, generator))
        lines.add(refused(target))
    for length in (0, 1, 9, len(content) // 2, len(content) - 1):
        target.path.write_bytes(content[:length])
        lines.add(refused(target))
    target.path.write_bytes(content)
    assert len(lines) > 2
    assert peak_bytes() - before < GB


def test_checkpoint_with_any_flip_in_its_zip_directory_is_refused(targets):
    target = targets["checkpoint"]
    content, generator = target.path.read_bytes(), random.Random(0)
    directory = content.index(b"PK\1\2")
    for place in generator.sample(range(directory, len(content)), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << generator.randrange(8)
        target.path.write_bytes(damaged)
        assert "damaged" in refused(target)
    target.path.write_bytes(content)


# ---- sizes that a file declares and does not have ----


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_layer", 10**9), ("n_layer", 2**62), ("n_embd", 2**30), ("vocab_size", 2**31 - 1), ("vocab_size", 10**600)],
    ids=reprlib.repr,
)
def test_read_compares_a_declared_shape_with_the_size_of_the_file(folder, model, tmp_path, name, value):
    change = {name: value}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    torch.save(nanogpt_state(model, **change), tmp_path / "nano.pt")
    state = {"model": model.state_dict(), "model_config": TINY | change, "tokenizer": None, "step": 1}
    checkpoint.save(tmp_path / "model_00001.pt", state)
    for path in (folder, tmp_path / "nano.pt", tmp_path / "model_00001.pt"):
        line = refusal(path)
        assert "but has only" in line or "positive integer" in line


def compressed(path):
    """Write the zip archive at `path` again, deflated."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def test_read_refuses_compressed_and_overlapping_archives(model, tmp_path):
    path = tmp_path / "nano.pt"
    torch.save(nanogpt_state(model), path)
    content = path.read_bytes()
    compressed(path)
    assert "is compressed" in refusal(path)
    entry = content.index(b"PK\1\2")  # the first entry of the directory: its two sizes are at 20
    path.write_bytes(content[: entry + 20] + struct.pack("<2I", 2**31, 2**31) + content[entry + 28 :])
    assert "declares" in refusal(path)


class Calls:
    """Is pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


W = torch.ones(4, 4)
STRANGE = {
    "meta": lambda: W.to("meta"),
    "sparse": W.to_sparse,
    "compressed sparse": W.to_sparse_csr,
    "quantized": lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([W, W[:2]]),
    "0-d": lambda: torch.tensor(1.0),
    "integers": lambda: torch.ones(20, 8, dtype=torch.int64),
    "complex": lambda: torch.ones(20, 8, dtype=torch.complex64),
    "expanded": lambda: torch.ones(1).expand(2**40),
    "a memory bomb": lambda: Calls(bytearray, 10**11),
    "text": lambda: "w",
}


@pytest.mark.filterwarnings("ignore")  # torch warns of some of these kinds
@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.1.ln_2.bias"])
def test_read_refuses_strange_tensors(model, folder, tmp_path, kind, name):
    tensors = model.to_tensors() | {name: STRANGE[kind]()}
    torch.save(nanogpt_state(model) | {"model": tensors}, tmp_path / "nano.pt")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    state = {"model": tensors, "model_config": TINY, "tokenizer": None, "step": 1}
    checkpoint.save(tmp_path / "model_00001.pt", state)  # with a valid checksum
    before = peak_bytes()
    for path in (tmp_path / "nano.pt", tmp_path / "model_00001.pt", folder):
        refusal(path)
    assert peak_bytes() - before < GB


DOUBLED = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))  # each operation makes the tuple (x, x) of the last x
PICKLES = {  # of a dict with the key 1 or a tuple, unless a function is called
    "2^60 values": b"\x80\2}K\1)" + DOUBLED + b"s.",
    "2^60 values as a key": b"\x80\2})" + DOUBLED + b"K\2s.",
    "a tuple 100,000 deep as a key": b"\x80\2}K\1" + 100_000 * b"\x85" + b"K\2s.",
    "text that doubles": b"\x80\2c_codecs\nencode\nX\2\0\0\0aaX\3\0\0\0hex\x86R.",
    "an allocation": b"\x80\2ctorch\nFloatTensor\n\x8a\5\0\xe4\x0bT\2\x85R.",
    "many operations": b"\x80\2" + 100_001 * b"N" + b".",
    "a stack that ends": b"\x80\2}s.",
    "an unknown memo": b"\x80\2h\7.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_safe_load_refuses_pickles_that_fill_memory_or_stack(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(pickle_check, "MAX_OPERATIONS", 100_000)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("archive/data.pkl", PICKLES[kind])
        archive.writestr("archive/version", "3\n")
    (tmp_path / "old.pt").write_bytes(PICKLES[kind])
    for name in ("zip.pt", "old.pt"):
        with pytest.raises(UserError, match=r"was refused: its pickle|is damaged or not a file of torch\.save"):
            safe_load(tmp_path / name)


# ---- values of the wrong type, and what is missing ----


WRONG = (None, "x", -1, 1.5, [], {}, [[1]], True, float("nan"), "\ud800", "a\0b", 10**400)


@pytest.mark.parametrize("wrong", WRONG, ids=reprlib.repr)
def test_read_refuses_or_ignores_json_of_wrong_types(folder, model, wrong):
    config = json.loads((folder / "config.json").read_text())
    target = model_target(folder / "config.json", folder)
    for name in config:
        target.path.write_text(json.dumps(config | {name: wrong}))
        refused(target)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = folder / "model.safetensors.index.json"
    for content in (wrong, {"weight_map": wrong}, {"weight_map": {"x": wrong}}, {"weight_map": {"x": "/etc/passwd"}}):
        index.write_text(json.dumps(content))
        refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_read_refuses_deeply_nested_and_huge_json(folder, name):
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    for content in ("[" * 100_000, '{"a":' * 100_000, '{"a":' + "[" * 500 + "]" * 500 + "}", "9" * 5000, "\xff\xfe"):
        (folder / name).write_bytes(content.encode("latin-1"))
        assert name in refusal(folder)
    with open(folder / name, "wb") as f:
        f.truncate(GB)
    assert "expected a JSON file of at most" in refusal(folder)


@pytest.mark.parametrize("missing", ["model", "model_config", "tokenizer", "step"])
@pytest.mark.parametrize("wrong", ["absent", 1.5, ["x"]])
def test_checkpoint_without_a_part_is_refused_under_a_valid_checksum(model, tmp_path, missing, wrong):
    state = {"model": model.state_dict(), "model_config": TINY, "tokenizer": None, "step": 1}
    state = {name: value for name, value in state.items() if name != missing}
    checkpoint.save(tmp_path / "model_00001.pt", state if wrong == "absent" else state | {missing: wrong})
    assert missing in refusal(tmp_path / "model_00001.pt")


# ---- what is no file ----


def test_read_refuses_pipes_and_devices_without_opening_them(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refusal(tmp_path / "pipe")
    assert "is a device" in refusal("/dev/zero")
    with pytest.raises(UserError, match="is a pipe"):
        checkpoint.load(tmp_path / "pipe")
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(tmp_path / name)
        os.mkfifo(folder / name)
        assert f"{name} is a pipe" in refusal(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)


def test_list_checkpoints_ignores_folders_and_pipes(model, tmp_path):
    save_checkpoint(tmp_path / "model_00001.pt", model)
    (tmp_path / "model_00099.pt").mkdir()
    os.mkfifo(tmp_path / "model_00100.pt")
    assert list(checkpoint.list_checkpoints(tmp_path)) == [1]
    assert checkpoint.newest_good(tmp_path, print) == tmp_path / "model_00001.pt"
    assert_same_parameters(GPT.from_pretrained(str(tmp_path)), model)
