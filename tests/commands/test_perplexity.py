"""perplexity.py: its table and output file, and one line for each mistake."""

import json
import math

import pytest
import torch
from corpus import tokenizer_or_skip
from helpers import TEXT, write_corpus
from models import save_checkpoint, small_gpt

from perplexity import main

CPU = ["--device=cpu", "--dtype=float32"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints by name: good; short context; gpt2, unknown (the tokenizer); nan (the weights)."""
    folder = tmp_path_factory.mktemp("models")
    good = small_gpt(vocab_size=257)
    paths = {"good": save_checkpoint(folder / "good.pt", good)}
    paths["short"] = save_checkpoint(folder / "short.pt", small_gpt(vocab_size=257, block_size=16))
    paths["gpt2"] = save_checkpoint(folder / "gpt2.pt", small_gpt(vocab_size=50257), tokenizer="gpt2")
    paths["unknown"] = save_checkpoint(folder / "unknown.pt", small_gpt(), tokenizer=None)
    torch.nn.init.constant_(good.transformer.ln_f.weight, math.nan)
    return paths | {"nan": save_checkpoint(folder / "nan.pt", good)}


def test_perplexity_command_gives_the_same_losses_for_text_and_its_shards(tmp_path, saved, capsys):
    (tmp_path / "val.txt").write_text(TEXT[-2000:])
    shards = write_corpus(tmp_path / "shards")
    lines = []
    for source in (tmp_path / "val.txt", shards):
        out = tmp_path / "out.jsonl"
        main([str(source), f"--model={saved['good']}", f"--out={out}", "--overwrite", *CPU])
        lines.append([json.loads(line) for line in out.read_text().splitlines()])
    (from_text,), (from_shards,) = lines
    assert from_shards.pop("source").endswith("tiny_val_000000.npy")
    assert from_text.pop("source").endswith("val.txt")
    assert from_text == from_shards
    assert (from_text["tokens"], from_text["bytes"]) == (2000, 2000)
    printed = capsys.readouterr().out
    assert f"{from_text['loss'] / 2000:.4f} " in printed, "nats per token"
    assert f"{from_text['loss'] / 2000 / math.log(2):.4f} " in printed, "bits per byte"
    assert "one document: no interval" in printed


def test_perplexity_command_takes_the_best_checkpoint_of_a_run(tmp_path, capsys):
    for name, step in (("model_00009.pt", 9), ("model_best.pt", 4)):
        save_checkpoint(tmp_path / name, small_gpt(vocab_size=257), step=step)
    (tmp_path / "a.txt").write_text(TEXT[:100])
    for flags, file in (((), "model_00009.pt (step 9)"), (("--best",), "model_best.pt (step 4)")):
        main([str(tmp_path / "a.txt"), f"--model={tmp_path}", *flags, *CPU])
        assert file in capsys.readouterr().out


def test_perplexity_command_compares_models_in_one_table(tmp_path, saved, capsys):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"{i} is a number. " * (i + 1))
    main([str(tmp_path), f"--model={saved['good']},{saved['good']}", "--stride=32", *CPU])
    head, first, second, difference = capsys.readouterr().out.splitlines()[2:]
    assert head.split() == ["model", "tokens", "bytes", "nats/token", "perplexity", "bits/byte", "perplexity/word"]
    assert first == second
    assert "±" in first
    assert difference.endswith("+0.0000 ±0.0000 bits/byte")


@pytest.mark.parametrize(
    ("text", "model", "flags", "message"),
    [
        (b"", "good", [], "text.txt is empty"),
        (b"caf\xe9 noir", "good", [], "not UTF-8 text (byte 3)"),
        (b"a", "good", ["--no-begin_with_eot"], "no token to score"),
        (b"some text", "unknown", [], "its tokenizer is unknown"),
        (b"some text", "nan", [], "its loss is nan in document 0"),
        (b"some text", "good", ["--stride=0"], "stride = 0: expected at least 1"),
        (b"some text", "good", ["--stride=33"], "--stride = 33: expected at most T, 32"),
        (b"some text", "good", ["--T=33"], "--T = 33: expected at most the model's block_size, 32"),
        (b"some text", "good", ["--out=/dev/null/x"], "Not a directory"),
    ],
)
def test_perplexity_command_refuses_with_one_line(tmp_path, saved, capsys, text, model, flags, message):
    (tmp_path / "text.txt").write_bytes(text)
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "text.txt"), f"--model={saved[model]}", *flags, *CPU])
    error = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize(
    ("second", "flags", "message"),
    [
        ("absent", [], "absent: no such model"),
        ("unknown", [], "its tokenizer is unknown"),
        ("short", ["--T=32"], "--T = 32: expected at most the model's block_size, 16"),
    ],
)
def test_perplexity_command_opens_every_model_before_it_scores_the_first(
    tmp_path, saved, capsys, second, flags, message
):
    (tmp_path / "text.txt").write_text("some text")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "text.txt"), f"--model={saved['good']},{saved.get(second, second)}", *flags, *CPU])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_perplexity_command_scores_shards_of_another_tokenizer_as_text(tmp_path, saved, capsys):
    """Shards hold ids; another model's tokenizer encodes their text again."""
    tokenizer_or_skip("gpt2")
    shards = write_corpus(tmp_path / "shards")
    out = tmp_path / "out.jsonl"
    main([str(shards), f"--model={saved['good']},{saved['gpt2']}", f"--out={out}", *CPU])
    byte, gpt2 = map(json.loads, out.read_text().splitlines())
    assert byte["bytes"] == gpt2["bytes"] == 2000
    assert gpt2["tokens"] < byte["tokens"] == 2000


def test_perplexity_command_needs_a_source(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "perplexity.py needs a source" in capsys.readouterr().err
