"""GGUF files, read back by the `gguf` package and by `formats.read`."""

import struct
import sys
from pathlib import Path

import pytest
import torch
from models import assert_same_parameters, random_ids, refusal, small_gpt

from formats.gguf import write
from formats.read import read
from model import GPT
from system.errors import UserError
from tokens.chat import JINJA
from tokens.tokenizer import get_tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: requirements-dev.txt has it")
SHAPE = {"block_size": 24, "vocab_size": 257, "n_layer": 3, "n_head": 4, "n_embd": 32}
TYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@pytest.fixture(scope="module")
def model():
    return small_gpt(**SHAPE).eval()


def write_model(path, model, tokenizer="byte", dtype=torch.float32, chat=False):
    write(path, model.config.shape, model.to_tensors(), tokenizer, dtype, chat)
    return str(path)


def fields_of(path):
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def text_list(data, key):
    """A list of texts in the bytes of a file, by GGUF's layout: the package's reader takes seconds for 50,000."""
    at = data.index(key.encode()) + len(key)
    kind, of, count = struct.unpack_from("<IIQ", data, at)
    assert (kind, of) == (9, 8), "an array of strings"
    at, texts = at + 16, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, at)
        texts.append(data[at + 8 : at + 8 + length].decode())
        at += 8 + length
    return texts


def bytes_of_characters():
    """{character: byte} of GPT-2's vocabulary, by OpenAI's encoder.py: invisible bytes are U+0100 and up."""
    invisible = [*range(0x21), *range(0x7F, 0xA1), 0xAD]
    characters = {byte: chr(byte) for byte in range(256)} | {b: chr(256 + i) for i, b in enumerate(invisible)}
    return {character: byte for byte, character in characters.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_write_stores_every_tensor_under_llama_cpps_name(model, tmp_path, dtype):
    found = {t.name: t for t in gguf.GGUFReader(write_model(tmp_path / "m.gguf", model, dtype=dtype)).tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, SHAPE["n_layer"])
    expected = {names.get_name(name, (".weight", ".bias")): t for name, t in model.to_tensors().items()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        stored_in = dtype if tensor.dim() == 2 and name != "position_embd.weight" else torch.float32
        assert found[name].tensor_type.name == TYPES[stored_in], name
        values = gguf.dequantize(found[name].data, found[name].tensor_type)
        assert torch.equal(torch.from_numpy(values.copy()), tensor.to(stored_in).float()), name


def test_write_stores_the_shape_under_llama_cpps_keys(model, tmp_path):
    fields = fields_of(write_model(tmp_path / "tiny.gguf", model, dtype=torch.bfloat16))
    keys, arch = gguf.Keys, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPT2]
    assert fields[keys.General.ARCHITECTURE] == arch
    assert fields[keys.General.NAME] == "tiny"
    assert fields[keys.General.FILE_TYPE] == gguf.LlamaFileType.MOSTLY_BF16
    expected = {
        keys.LLM.CONTEXT_LENGTH: 24,
        keys.LLM.EMBEDDING_LENGTH: 32,
        keys.LLM.FEED_FORWARD_LENGTH: 128,
        keys.LLM.BLOCK_COUNT: 3,
        keys.Attention.HEAD_COUNT: 4,
        keys.Attention.LAYERNORM_EPS: pytest.approx(1e-5),
    }
    assert {key: fields[key.format(arch=arch)] for key in expected} == expected


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_write_stores_the_bytes_of_every_token_in_the_order_of_our_ids(tmp_path, name):
    try:
        ours = get_tokenizer(name)
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")
    model = small_gpt(vocab_size=ours.vocab_size, n_layer=1, n_embd=8)
    data = Path(write_model(tmp_path / "m.gguf", model, name)).read_bytes()
    tokens, merges = text_list(data, gguf.Keys.Tokenizer.LIST), text_list(data, gguf.Keys.Tokenizer.MERGES)
    to_byte = bytes_of_characters()
    assert [bytes(to_byte[c] for c in token) for token in tokens[:-1]] == [
        ours.decode_bytes([i]) for i in range(ours.vocab_size - 1)
    ]
    assert tokens[-1] == "<|endoftext|>"
    if name == "gpt2":  # the merge of rank r makes token 256 + r
        assert [merge.replace(" ", "") for merge in merges] == tokens[256:-1]
    else:
        assert not {part for merge in merges for part in merge.split(" ")} & set(tokens[:-1]), "no merge applies"


def test_write_marks_end_of_text_as_a_control_token_that_begins_no_prompt(model, tmp_path):
    fields, keys = fields_of(write_model(tmp_path / "m.gguf", model)), gguf.Keys.Tokenizer
    assert fields[keys.TOKEN_TYPE] == [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL]
    assert (fields[keys.BOS_ID], fields[keys.EOS_ID], fields[keys.ADD_BOS]) == (256, 256, False)
    assert (fields[keys.MODEL], fields[keys.PRE]) == ("gpt2", "gpt-2")


@pytest.mark.parametrize("chat", [False, True])
def test_read_says_whether_the_model_was_tuned_on_conversations(model, tmp_path, chat):
    path = write_model(tmp_path / "m.gguf", model, chat=chat)
    assert read(path).chat == chat
    assert fields_of(path).get(gguf.Keys.Tokenizer.CHAT_TEMPLATE) == (JINJA if chat else None)


def test_read_takes_a_head_that_equals_the_embedding(model, tmp_path):
    """Older versions of llama.cpp's converter write it."""
    path = tmp_path / "head.gguf"
    for factor, refused in ((1, False), (2, True)):
        tensors = model.to_tensors()
        write(path, SHAPE, tensors, "byte", torch.float32)
        add_tensor(path, "output.weight", factor * tensors["transformer.wte.weight"])
        if refused:
            assert "lm_head.weight differs" in refusal(path)
        else:
            assert_same_parameters(GPT.from_pretrained(str(path)), model)


def add_tensor(path, name, tensor):
    """Write the file again with one tensor more, by the package alone."""
    reader = gguf.GGUFReader(path)
    arrays = {t.name: t.data.copy() for t in reader.tensors} | {name: tensor.numpy()}
    rewrite(path, reader, arrays, {})


def rewrite(path, reader, arrays, changes, raw_dtype=None):
    """Write a file by the package alone: the fields of `reader` with `changes`, and float32 `arrays`."""
    writer = gguf.GGUFWriter(path, changes.pop("general.architecture", "gpt2"))
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = changes.get(key, field.contents())
            writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for name, array in arrays.items():
        writer.add_tensor(name, array, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("general.architecture", "llama", "is a 'llama', expected a gpt2"),
        ("gpt2.attention.layer_norm_epsilon", 1e-6, "is not a plain GPT-2: gpt2.attention.layer_norm_epsilon = 9.99"),
        ("gpt2.feed_forward_length", 64, "gpt2.feed_forward_length = 64, expected 128"),
        ("gpt2.block_count", 2, "has a tensor blk.2."),
        ("gpt2.block_count", 4, "has no tensor transformer.h.3"),
        ("gpt2.block_count", 2**31, "n_layer = 2147483648"),
        ("gpt2.block_count", 2**30, "is damaged: it declares"),
        ("gpt2.attention.head_count", 5, "n_embd = 32 is not divisible by n_head = 5"),
    ],
)
def test_read_refuses_files_of_another_function(model, tmp_path, key, value, words):
    reader = gguf.GGUFReader(write_model(tmp_path / "good.gguf", model))
    arrays = {t.name: t.data for t in reader.tensors}
    rewrite(tmp_path / "changed.gguf", reader, arrays, {key: value})
    assert words in refusal(tmp_path / "changed.gguf")


def test_read_refuses_quantized_and_truncated_files(model, tmp_path):
    path = tmp_path / "m.gguf"
    reader = gguf.GGUFReader(write_model(path, model))
    kind = gguf.GGMLQuantizationType.Q8_0
    arrays = {t.name: gguf.quantize(t.data, kind) for t in reader.tensors if t.data.ndim == 2}
    rewrite(tmp_path / "q8.gguf", reader, arrays, {}, kind)
    assert "is Q8_0, expected F32, F16, BF16" in refusal(tmp_path / "q8.gguf")
    whole = path.read_bytes()
    for length in (4, 100, 5000, len(whole) - 100):
        path.write_bytes(whole[:length])
        assert "m.gguf" in refusal(path)


def test_write_refuses_a_model_without_a_known_tokenizer(tmp_path):
    with pytest.raises(UserError, match="tokenizer is unknown, and a GGUF file holds it: expected gpt2 or byte"):
        write_model(tmp_path / "m.gguf", small_gpt(), None)
    assert not list(tmp_path.iterdir())


def test_missing_package_is_a_one_line_error(model, tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.gguf", model)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"need the package gguf .*: pip install gguf==\d"):
        write_model(tmp_path / "other.gguf", model)
    with pytest.raises(UserError, match=r"pip install gguf=="):
        read(path)


def test_read_model_has_the_written_logits(model, tmp_path):
    idx = random_ids(2, 16, vocab_size=257)
    with torch.no_grad():
        assert torch.equal(GPT.from_pretrained(write_model(tmp_path / "m.gguf", model))(idx), model(idx))
