"""llm.c's files, read back by a parser written here from its layout and by `transformers`."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import assert_same_parameters, random_ids, refusal, small_gpt

from formats import llmc
from formats.read import read
from inference import compare
from model import GPT
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

SHAPES = {  # two models of bytes, one without padding, the other with a longer context than a debug batch
    "padded": {"block_size": 24, "vocab_size": 257, "n_layer": 3, "n_head": 2, "n_embd": 32},
    "even": {"block_size": 70, "vocab_size": 256, "n_layer": 2, "n_head": 4, "n_embd": 48},
}
LAYERED = (  # llm.c's order of what follows wte and wpe: name here, shape in units of C
    *(("ln_1.weight", (1,)), ("ln_1.bias", (1,)), ("attn.c_attn.weight", (3, 1)), ("attn.c_attn.bias", (3,))),
    *(("attn.c_proj.weight", (1, 1)), ("attn.c_proj.bias", (1,)), ("ln_2.weight", (1,)), ("ln_2.bias", (1,))),
    *(("mlp.c_fc.weight", (4, 1)), ("mlp.c_fc.bias", (4,)), ("mlp.c_proj.weight", (1, 4)), ("mlp.c_proj.bias", (1,))),
)


@pytest.fixture(params=SHAPES)
def model(request):
    return small_gpt(**SHAPES[request.param]).eval()


def write_model(path, model, dtype=torch.float32):
    llmc.write_model(path, model.config.shape, model.to_tensors(), dtype)
    return str(path)


def rounded_up(vocab_size):
    return (vocab_size + 127) // 128 * 128


def parse_tensors(data, shape, bytes_each):
    """Parameters as the layout describes them: {name without `transformer.`: float32 array}."""
    V, C, L, T = shape["vocab_size"], shape["n_embd"], shape["n_layer"], shape["block_size"]
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


def parse_header(path, magic, values):
    """(header, all bytes) of a file; only the first `values` numbers of the header may be set."""
    data = Path(path).read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[0] == magic
    assert not any(header[values:])
    return header, data


def parse_model(path):
    """(shape, tensors) of a gpt2_124M.bin."""
    header, data = parse_header(path, 20240326, 8)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    shape = dict(zip(names, header[2:7], strict=True))
    assert header[7] == rounded_up(shape["vocab_size"])
    return shape, parse_tensors(data[1024:], shape, {3: 4, 5: 2}[header[1]])


def parse_debug_state(path, shape):
    header, data = parse_header(path, 20240327, 4)
    assert header[1] == 2
    B, T = header[2:4]
    V = shape["vocab_size"]
    ids = np.frombuffer(data, "<i4", 2 * B * T, 1024).reshape(2, B, T)
    at = 1024 + ids.nbytes
    logits = np.frombuffer(data, "<f4", B * T * V, at).reshape(B, T, V)
    at += logits.nbytes
    (loss,) = struct.unpack_from("<f", data, at)
    return ids[0], ids[1], logits, loss, parse_tensors(data[at + 4 :], shape, 4)


def in_transformers(shape, tensors):
    """The GPT-2 of `transformers` with the tensors of a parsed file."""
    shape = {"n_positions" if k == "block_size" else k: v for k, v in shape.items()}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for prefix, module in model.transformer.named_modules():
            for name, p in module.named_parameters(recurse=False):
                tensor = torch.from_numpy(tensors[f"{prefix}.{name}"].copy())
                p.copy_(tensor.T if isinstance(module, transformers.pytorch_utils.Conv1D) and p.dim() == 2 else tensor)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_write_model_has_llmcs_layout(model, tmp_path, dtype):
    shape, tensors = parse_model(write_model(tmp_path / "gpt2.bin", model, dtype))
    assert shape == model.config.shape
    expected = model.to_tensors()
    assert {f"transformer.{name}" for name in tensors} == expected.keys()
    for name, tensor in tensors.items():
        assert np.array_equal(tensor, expected[f"transformer.{name}"].to(dtype).float().numpy()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_read_returns_the_written_model(model, tmp_path, dtype):
    model_file = read(write_model(tmp_path / "gpt2.bin", model, dtype))
    assert model_file.tokenizer == ("byte" if model.config.vocab_size == 257 else None)
    found = GPT.from_file(model_file)
    assert_same_parameters(found, model.to(dtype).float())
    write_model(tmp_path / "again.bin", found, dtype)
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "gpt2.bin").read_bytes()


def test_debug_state_has_the_logits_loss_and_gradients_of_transformers(model, tmp_path):
    """The check of llm.c's own test, which allows 0.01 and for gradients 0.02; here 1e-5 of each tensor's scale."""
    V, T = model.config.vocab_size, model.config.block_size
    state = compare.debug_state(model, random_ids(3, T, vocab_size=V), random_ids(3, T, vocab_size=V, seed=2))
    llmc.write_debug_state(tmp_path / "state.bin", model.config.shape, state)
    shape, tensors = parse_model(write_model(tmp_path / "gpt2.bin", model))
    inputs, targets, logits, loss, grads = parse_debug_state(tmp_path / "state.bin", shape)
    theirs = in_transformers(shape, tensors)
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


def parse_tokenizer(path):
    header, data = parse_header(path, 20240328, 4)
    assert header[1] == 2
    tokens, at = [], 1024
    while at < len(data):
        tokens.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    assert (at, len(tokens)) == (len(data), header[2])
    assert min(map(len, tokens)) > 0
    return tokens, header[3]


def test_write_tokenizer_has_the_bytes_of_every_token(tmp_path):
    llmc.write_tokenizer(tmp_path / "byte.bin", get_tokenizer("byte"))
    assert parse_tokenizer(tmp_path / "byte.bin") == ([bytes((i,)) for i in range(256)] + [b"<|endoftext|>"], 256)


def test_write_tokenizer_of_gpt2_decodes_what_tiktoken_encodes(tmp_path):
    try:
        gpt2 = get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(f"needs GPT-2's BPE: {error}")
    llmc.write_tokenizer(tmp_path / "gpt2.bin", gpt2)
    tokens, eot = parse_tokenizer(tmp_path / "gpt2.bin")
    assert b"".join(tokens[i] for i in gpt2.encode("Hello, naïve 日本語\n")).decode() == "Hello, naïve 日本語\n"
    assert (len(tokens), eot, tokens[50256]) == (50257, 50256, b"<|endoftext|>")


def parse_eval(path):
    """The examples of an evaluation file: [(label, context, endings)]."""
    header, data = parse_header(path, 20240522, 4)
    assert header[1] == 1
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


def test_write_eval_holds_every_example(tmp_path):
    examples = [(2, [1, 2, 3], [[4], [5, 6], [7], [8, 9, 10]]), (0, [50256], [[1], [2], [3], [4]])]
    assert llmc.write_eval(tmp_path / "eval.bin", examples) == 2
    assert parse_eval(tmp_path / "eval.bin") == examples
    with pytest.raises(UserError, match="example 0 does not fit the format"):
        llmc.write_eval(tmp_path / "long.bin", [(0, [1] * 32763, [[1], [2], [3], [4]])])
    for label, endings in ((-1, [[1], [2]]), (2**40, [[1], [2]]), (4, [[1], [2], [3], [4]]), (0, [])):
        with pytest.raises(UserError, match=f"example 0 has label {label}"):
            llmc.write_eval(tmp_path / "label.bin", [(label, [1], endings)])
    with pytest.raises(UserError, match="no examples"):
        llmc.write_eval(tmp_path / "none.bin", [])


def with_header(content, index, value):
    return content[: 4 * index] + struct.pack("<i", value) + content[4 * index + 4 :]


def test_read_refuses_damaged_and_mislabelled_models(model, tmp_path):
    path = tmp_path / "gpt2.bin"
    write_model(path, model)
    whole = path.read_bytes()
    for content, words in (
        (whole[:-1], "is truncated"),
        (whole[:1000], "is truncated: 1000 bytes, the header has 1024"),
        (whole + b"\0", "is too long"),
        (with_header(whole, 1, 5), "its header is wrong"),  # claims bfloat16
        (with_header(whole, 1, 1), "version 1, expected 3 or 5"),
        (with_header(whole, 4, -1), "n_layer = -1"),
        (with_header(whole, 4, 2**31 - 1), "its header is wrong"),
        (with_header(whole, 7, 5), "padded vocabulary of 5"),
        (with_header(whole, 0, 20240520), "is a token shard of llm.c, expected a model"),
        (with_header(whole, 0, 1), "is not a model"),
    ):
        path.write_bytes(content)
        assert words in refusal(path)


def test_read_debug_state_refuses_damaged_files(model, tmp_path):
    path, shape = tmp_path / "state.bin", model.config.shape
    llmc.write_debug_state(path, shape, compare.debug_state(model, random_ids(2, 16), random_ids(2, 16, seed=2)))
    whole = path.read_bytes()
    for content, words in (
        (whole[:-4], "is truncated"),
        (with_header(whole, 1, 1), "version 1, expected 2"),
        (with_header(whole, 3, 1000), "a batch of 2×1000"),
        (with_header(whole, 256, 300), "holds ids from"),
        (b"\1" * 2000, "is not a file of llm.c, expected a debug state"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            llmc.read_debug_state(path, shape)
