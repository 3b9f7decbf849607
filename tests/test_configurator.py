"""Config files and flags: precedence, syntax, types, and one-line errors."""

import importlib
import typing
from dataclasses import dataclass, make_dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

from configurator import Range, configure, type_options
from system.errors import UserError


@dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    max_lr: Annotated[float, Range(0)] = 6e-4
    """peak"""
    B: Annotated[int | Literal["auto"], Range(1)] = 64
    """batch"""
    beta: Annotated[float | None, Range(0, 1, excluded=1)] = None
    """decay"""
    device: Literal["auto", "cpu"] = "auto"
    """where"""
    style: str | None = "focused"
    """how"""
    resume: bool = False
    """continue"""
    compile: bool | None = None
    """maybe"""

    def check(self):
        if self.B == 13:
            raise UserError("B = 13: expected another number")


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="a.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_precedence_is_defaults_then_files_in_order_then_flags(config_file):
    first, second = config_file("B = 1\nmax_lr = 1e-3\nstyle = 'wild'", "a.py"), config_file("B = 2", "b.py")
    assert configure(Settings, []) == Settings()
    assert configure(Settings, [first, second, "--style", "creative"]) == Settings(max_lr=1e-3, B=2, style="creative")
    assert configure(Settings, ["--B=3", second, first]).B == 3


def test_config_file_is_python(config_file):
    lines = (
        "import math",
        "_half = 4",
        "def double(x): return 2 * x",
        "B = double(_half)",
        "max_lr = 1 / math.sqrt(4)",
    )
    assert configure(Settings, [config_file("\n".join(lines))]) == Settings(B=8, max_lr=0.5)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("max_lr = 0.1 + 0.2", "max_lr", 0.1 + 0.2),
        ("max_lr = 1", "max_lr", 1.0),
        ("import numpy\nmax_lr = numpy.float64(0.5)", "max_lr", 0.5),
        ("B = 'auto'", "B", "auto"),
        ("style = None", "style", None),
        ("style = 'None'", "style", "None"),
        ("compile = True", "compile", True),
    ],
)
def test_config_file_values_keep_their_value_and_get_the_type_of_the_field(config_file, text, name, value):
    found = getattr(configure(Settings, [config_file(text)]), name)
    assert found == value
    assert type(found) is type(value)
    assert not isinstance(found, np.generic)


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        (["--device=cpu"], "device", "cpu"),
        (["--device", "cpu"], "device", "cpu"),
        (["--max-lr", "1e-3"], "max_lr", 1e-3),
        (["--B=auto"], "B", "auto"),
        (["--style=None"], "style", None),
        (["--style=--x=y z"], "style", "--x=y z"),
        (["--resume"], "resume", True),
        (["--resume=True"], "resume", True),
        (["--resume", "true"], "resume", True),
        (["--resume", "--B", "2"], "resume", True),
        (["--no-resume"], "resume", False),
        (["--resume", "--no-resume"], "resume", False),
        (["--resume=false"], "resume", False),
        (["--compile"], "compile", True),
        (["--no-compile"], "compile", False),
        (["--compile=None"], "compile", None),
    ],
)
def test_flag_syntax(argv, name, value):
    found = getattr(configure(Settings, argv), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max_rl", "1"], ["--max_rl", "did you mean max_lr?"]),
        (["--B", "four"], ["--B", "'four'", "an integer or auto"]),
        (["--B", "1.5"], ["an integer"]),
        (["--B"], ["--B needs a value", "an integer"]),
        (["--B", "--resume"], ["--B needs a value"]),
        (["--device", "gpu"], ["--device", "'gpu'", "one of auto, cpu"]),
        (["--max_lr=high"], ["a number"]),
        (["--resume=maybe"], ["True or False"]),
        (["--B", "13"], ["B = 13", "another number"]),
        (["--B", "0"], ["B = 0: expected at least 1, or auto"]),
        (["--B", "1" + 12 * "0" + "1"], ["at most 1000000000000, or auto"]),
        (["--max_lr", "-1e-9"], ["max_lr = -1e-09: expected at least 0"]),
        (["--max_lr", "nan"], ["max_lr = nan"]),
        (["--max_lr", "inf"], ["max_lr = inf"]),
        (["--beta", "1"], ["beta = 1.0: expected less than 1, or None"]),
        (["config/a.yaml"], ["config/a.yaml", "no such config file"]),
        (["config/absent.py"], ["config/absent.py", "no such config file"]),
        (["-B", "4"], ["-B", "no such config file"]),
    ],
)
def test_error_on_the_command_line_is_one_line(argv, words, capsys):
    with pytest.raises(UserError) as error:
        configure(Settings, argv)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--batch_size=12"], "--batch_size: nanoGPT's --batch_size is --B here"),
        (["--learning-rate", "1e-3"], "--learning_rate: nanoGPT's --learning_rate is --max_lr here"),
        (["-b", "4"], "-b: llm.c's -b is --B here"),
        (["-d", "cuda"], "-d: build-nanogpt's -d is --device here"),
        (["-y", "1"], "-y: llm.c's -y is --resume here"),
    ],
)
def test_flag_of_another_program_gets_its_own_hint(argv, words):
    with pytest.raises(UserError) as error:
        configure(Settings, argv)
    assert str(error.value) == words


def test_flag_of_another_program_that_has_one_other_value_gets_a_hint():
    settings = make_dataclass("WithInitFrom", [("init_from", str, "scratch"), ("resume", bool, False)])
    assert configure(settings, ["--init_from", "gpt2"]).init_from == "gpt2"
    with pytest.raises(UserError, match="nanoGPT's --init_from=resume is --resume here"):
        configure(settings, ["--init_from", "resume"])


def test_setting_of_another_program_in_a_config_file_gets_a_hint(config_file):
    with pytest.raises(UserError, match=r"a.py: batch_size: nanoGPT's --batch_size is --B here"):
        configure(Settings, [config_file("batch_size = 12")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_rl = 1", ["a.py", "max_rl", "did you mean max_lr?"]),
        ("B = 1.5", ["a.py: B = 1.5", "an integer or auto"]),
        ("B = True", ["a.py: B = True", "an integer"]),
        ("B = '4'", ["a.py: B = '4'", "an integer"]),
        ("max_lr = '1e-3'", ["a.py: max_lr = '1e-3'", "a number"]),
        ("resume = 1", ["a.py: resume = 1", "True or False"]),
        ("device = 'gpu'", ["one of auto, cpu"]),
        ("B = 1 +", ["a.py", "SyntaxError"]),
        ("B = 1 / 0", ["a.py", "ZeroDivisionError"]),
        ("raise ValueError('two\\nlines')", ["a.py: ValueError: two"]),
        ("B = 4\nexit()", ["a.py: SystemExit"]),
        ("B = 10**5000", ["B = an integer of 16,610 bits: expected at most"]),
        ("style = 10**5000", ["a.py: style = an integer of 16,610 bits: expected text"]),
        ("style = 'a\\0b'", [r"style = 'a\x00b': expected text without a null character"]),
        ("max_lr = float('nan')", ["max_lr = nan: expected at least 0"]),
        ("B: 4", ["a.py assigns no setting"]),
        ("", ["a.py assigns no setting"]),
    ],
)
def test_error_in_a_config_file_is_one_line(config_file, text, words):
    with pytest.raises(UserError) as error:
        configure(Settings, [config_file(text)])
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(("name", "text"), [("a.json", '{"B": 4}'), ("a.yaml", "B: 4"), ("a", "B = 4")])
def test_config_file_in_another_format_is_refused(config_file, name, text):
    with pytest.raises(UserError, match="expected a Python file"):
        configure(Settings, [config_file(text, name)])


COMMANDS = ("train_gpt2", "sweep", "sample", "hellaswag", "plot", "bench", "export", "perplexity", "harness")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_numeric_setting_of_a_command_has_a_range(command):
    module = importlib.import_module(command)
    settings = getattr(module, "Settings", None) or module.TrainConfig
    plain = typing.get_type_hints(settings)
    for name, hint in typing.get_type_hints(settings, include_extras=True).items():
        if {int, float} & set(type_options(plain[name])):
            ranges = [item for item in getattr(hint, "__metadata__", ()) if isinstance(item, Range)]
            assert ranges, name
            default = getattr(settings(), name)
            assert not isinstance(default, (int, float)) or ranges[0].accepts(default), name


def test_help_lists_each_key_with_its_default_and_meaning(capsys, config_file):
    with pytest.raises(SystemExit) as stop:
        configure(Settings, [config_file("B = 7"), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--max_lr", "peak", "0.0006", "--B", "batch", "7", "config/FILE.py"))
