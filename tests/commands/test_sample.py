"""sample.py: where the prompt comes from, the order of printed samples, and one-line errors."""

import dataclasses
import sys

import pytest
import torch
from helpers import run_script

import sample
from formats import checkpoint
from inference.sampling import STYLES
from model import GPT, GPTConfig
from sample import SamplePrinter, Settings, main, read_prompt
from system.errors import UserError
from tokens.tokenizer import get_tokenizer


@pytest.fixture
def log(tmp_path):
    """A folder with log/run/model_00003.pt, a small byte model."""
    config = GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=16)
    torch.manual_seed(0)
    (tmp_path / "log" / "run").mkdir(parents=True)
    state = {"model": GPT(config).state_dict(), "model_config": dataclasses.asdict(config)}
    checkpoint.save(
        tmp_path / "log" / "run" / "model_00003.pt", state | {"tokenizer": "byte", "step": 3, "val_loss": None}
    )
    return tmp_path


def test_sample_printer_prints_samples_in_order(capsys):
    printer = SamplePrinter(get_tokenizer("byte"), "P", 3)
    printed = [capsys.readouterr().out]
    for row, token in [(1, 98), (0, 97), (1, 256), (2, 99), (0, 65), (0, 256), (2, 67)]:
        printer.on_token(row, token)
        printed.append(capsys.readouterr().out)
    printer.finish()
    printed.append(capsys.readouterr().out)
    assert printed == [
        "[Sample 1] P",
        "",
        "a",
        "",
        "",
        "A",
        "\n\n[Sample 2] Pb\n\n[Sample 3] Pc",
        "C",
        "\n\n",
    ]


def test_sampling_flags_override_the_style():
    assert Settings(style="focused").sampling() == STYLES["focused"]
    changed = Settings(style="focused", top_k=0, temperature=0.0).sampling()
    assert dataclasses.astuple(changed) == (0.0, 0, STYLES["focused"].top_p)


SHORT = ["--max_new_tokens=4", "--device=cpu", "--dtype=float32"]


def test_sample_command_reads_a_piped_prompt_and_finds_the_newest_checkpoint(log):
    done = run_script("sample.py", *SHORT, cwd=log, stdin="genom röret\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[Sample 1] genom röret")
    assert done.stdout.count("[Sample") == 4
    assert "--model is not given: log/run/model_00003.pt, written " in done.stderr.replace("\\", "/")
    assert "log/run/model_00003.pt (step 3)" in done.stderr.replace("\\", "/")


def test_sample_command_reads_prompts_from_flag_file_and_keyboard(log, monkeypatch, capsys):
    monkeypatch.chdir(log)
    main([*SHORT, "--prompt=flagga", "--num_samples=2"])
    printed = capsys.readouterr().out
    assert printed.startswith("[Sample 1] flagga")
    assert "[Sample 2] flagga" in printed

    (log / "prompt.txt").write_text("från en fil\n", encoding="utf-8")
    assert read_prompt(Settings(prompt_file="prompt.txt")) == "från en fil"

    typed = iter(["ett", "två", ""])
    monkeypatch.setattr("builtins.input", lambda text: next(typed))
    main([*SHORT, "--interactive"])
    printed = capsys.readouterr().out
    assert printed.count("[Sample") == 2
    assert printed.index("[Sample 1] ett") < printed.index("[Sample 1] två")


def test_sample_command_holds_a_conversation(log, monkeypatch, capsys):
    monkeypatch.chdir(log)
    typed = iter(["hi", "/save a.jsonl", "/quit", "/reset", "hi\udcff", "x" * 99])

    def read_line(text):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", read_line)
    main([*SHORT, "--chat", "--style=focused", "--model=log/run"])
    printed = capsys.readouterr()
    assert printed.out.count("assistant>") == 2
    for line in (
        "warning: log/run/model_00003.pt (step 3) was not fine-tuned on conversations",
        "the conversation begins again",
        "error: /quit: expected /reset or /save FILE",
        "error: the question: character 2 is not UTF-8",
        "error: the question has",
    ):
        assert line in printed.err.replace("\\", "/")


def test_sample_command_refuses_weights_that_are_not_finite(log, monkeypatch, capsys):
    monkeypatch.chdir(log)
    path = log / "log" / "run" / "model_00003.pt"
    state = checkpoint.load(path)
    state["model"]["transformer.ln_f.weight"][3] = float("nan")
    checkpoint.save(path, state)
    with pytest.raises(SystemExit) as stopped:
        main([*SHORT, "--prompt=a"])
    assert stopped.value.code == 2
    assert "the model's logits are not finite" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_read_prompt_refuses_text_that_is_not_utf8(tmp_path, monkeypatch, source):
    (tmp_path / "latin1.txt").write_bytes("genom röret".encode("latin1"))
    settings = Settings(prompt_file=str(tmp_path / "latin1.txt")) if source == "file" else Settings()
    with open(tmp_path / "latin1.txt", encoding="utf-8", errors="surrogateescape") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(sample, "stdin_is_redirected", lambda: True)
        with pytest.raises(UserError, match="character 7 is not UTF-8"):
            read_prompt(settings)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_samples=0"], "num_samples = 0: expected at least 1"),
        (["--max_new_tokens=0"], "max_new_tokens = 0: expected at least 1"),
        (["--top_p=2"], "top_p = 2.0: expected"),
        (["--style=calm"], "focused, creative, wild"),
        (["--prompt=a", "--prompt_file=b"], "expected one of the two"),
        (["--prompt_file=absent.txt"], "absent.txt"),
        (["--model=absent.pt"], "absent.pt"),
        (["--chat", "--prompt=a"], "--chat reads questions from the keyboard"),
        (["--system=a"], "system = 'a': expected some text, together with --chat"),
        (["--prompt=a\udcff"], "--prompt: character 1 is not UTF-8"),
        (["--temperature=nan"], "temperature = nan"),
        (["--temperature=1e-40"], "temperature = 1e-40: expected 0 (greedy), or 0.0001 and more"),
        (["--max_new_tokens=99999999999999"], "max_new_tokens = 99999999999999: expected at most"),
        (["--seed=18446744073709551616"], "seed = 18446744073709551616: expected at most"),
    ],
)
def test_sample_command_errors_are_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
