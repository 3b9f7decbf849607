"""Sampling as a user meets it: whole characters, samples in order, prompts from anywhere, the newest model."""

import dataclasses
import os

import pytest
import torch
from helpers import run_script

from formats import checkpoint
from model import GPT, GPTConfig
from sample import STYLES, Config, Streamer, TextDecoder, newest_checkpoint, read_prompt, sample_texts
from system.errors import UserError
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
CPU = Runtime(torch.device("cpu"), torch.float32)


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=16))


def save(gpt, path, step):
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": gpt.state_dict(), "model_config": dataclasses.asdict(gpt.config)}
    checkpoint.save(path, state | {"tokenizer": "byte", "step": step, "val_loss": None})
    return path


def test_text_comes_in_whole_characters():
    text = "naïve 😀 日本"
    decoder = TextDecoder(BYTE)
    pieces = [decoder.add([byte]) for byte in text.encode()]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)
    assert TextDecoder(BYTE).add("é".encode()[:1]) == "", "half a character at the end isn't shown"


def test_what_could_garble_a_terminal_is_replaced():
    assert TextDecoder(BYTE).add(b"a\x1b[2Jb\r\x07\x7f\tc\n") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\tc\n"
    assert TextDecoder(BYTE).add(b"a\xff\xfeb") == "a\ufffd\ufffdb"


def test_samples_are_shown_in_order_each_live_when_its_turn_comes(capsys):
    streamer = Streamer(BYTE, "P", 3)
    streamer.show()
    shown = []
    for row, token in [(1, 98), (0, 97), (1, 256), (2, 99), (0, 65), (0, 256), (2, 67)]:
        streamer.on_token(row, token)
        shown.append(capsys.readouterr().out)
    streamer.finish()
    shown.append(capsys.readouterr().out)
    assert shown == [
        "[Sample 1] P",
        "a",
        "",
        "",
        "A",
        "\n\n[Sample 2] Pb\n\n[Sample 3] Pc",
        "C",
        "\n\n",
    ]


def test_flags_override_the_style():
    assert Config(style="focused").sampling() == STYLES["focused"]
    assert Config(style="focused", top_k=0, temperature=0.0).sampling() == STYLES["focused"] | {
        "top_k": 0,
        "temperature": 0.0,
    }


def test_training_is_not_disturbed_whatever_wraps_the_model(gpt):
    gpt.train()
    state = torch.get_rng_state()
    expected = sample_texts(gpt, BYTE, CPU, "ab", num_samples=2, max_new_tokens=8)
    compiled = torch.compile(gpt, backend="eager")
    assert sample_texts(compiled, BYTE, CPU, "ab", num_samples=2, max_new_tokens=8) == expected
    assert all(text.startswith("ab") for text in expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert gpt.training


def test_the_newest_checkpoint_at_any_depth_is_the_default(tmp_path, gpt):
    with pytest.raises(UserError, match=r"train_gpt2\.py.*--model"):
        newest_checkpoint(tmp_path)
    old = save(gpt, tmp_path / "a" / "model_00900.pt", 900)
    new = save(gpt, tmp_path / "b" / "deep" / "model_00100.pt", 100)
    os.utime(old, (1e9, 1e9))
    assert newest_checkpoint(tmp_path) == str(new)
    os.utime(old)
    os.utime(new, (1e9, 1e9))
    assert newest_checkpoint(tmp_path) == str(old)


def test_prompts_come_from_flags_files_pipes_and_the_keyboard(tmp_path, gpt):
    save(gpt, tmp_path / "log" / "run" / "model_00003.pt", 3)
    (tmp_path / "prompt.txt").write_text("från en fil\n", encoding="utf-8")

    def sample(*args, stdin=""):
        short = ("--max_new_tokens", 4, "--device", "cpu", "--dtype", "float32")
        done = run_script("sample.py", *short, *args, cwd=tmp_path, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return done

    done = sample("--prompt", "flagga", "--num_samples", 2)
    assert done.stdout.startswith("[Sample 1] flagga")
    assert "[Sample 2] flagga" in done.stdout
    assert "log/run/model_00003.pt (step 3)" in done.stderr.replace("\\", "/")
    assert read_prompt(Config(prompt_file=str(tmp_path / "prompt.txt"))) == "från en fil"
    piped = sample(stdin="genom röret\n")
    assert piped.stdout.startswith("[Sample 1] genom röret")
    assert piped.stdout.count("[Sample") == 4
    typed = sample("--interactive", stdin="ett\ntvå\n").stdout
    assert typed.index("[Sample 1] ett") < typed.index("[Sample 1] två")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_samples=0"], "--num_samples 0: expected at least 1"),
        (["--max_new_tokens=0"], "--max_new_tokens 0"),
        (["--top_p=2"], "top_p = 2.0: expected"),
        (["--style=calm"], "focused, creative, wild"),
        (["--prompt=a", "--prompt_file=b"], "expected one of the two"),
        (["--prompt_file=absent.txt"], "absent.txt"),
        (["--model=absent.pt"], "absent.pt"),
    ],
)
def test_mistakes_are_one_line(flags, words, capsys):
    from sample import main

    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
