"""Config files and flags: what wins, what is understood, what is refused and how."""

from dataclasses import dataclass
from typing import Literal

import pytest

from configurator import configure
from system.errors import UserError


@dataclass(frozen=True)
class Settings:
    """A test's settings."""

    max_lr: float = 6e-4
    """peak"""
    B: int = 64
    """batch"""
    device: Literal["auto", "cpu"] = "auto"
    """where"""
    style: str = "focused"
    """how"""
    resume: bool = False
    """go on"""
    compile: bool | None = None
    """maybe"""

    def check(self):
        if self.B < 1:
            raise UserError(f"B = {self.B}: expected at least 1")


@pytest.fixture
def config_file(tmp_path):
    def write(text, name="a.py"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_flags_win_over_files_and_later_files_over_earlier(config_file):
    first, second = config_file("B = 1\nmax_lr = 1e-3\nstyle = 'wild'", "a.py"), config_file("B = 2", "b.py")
    assert configure(Settings, []) == Settings()
    assert configure(Settings, [first, second, "--style", "creative"]) == Settings(max_lr=1e-3, B=2, style="creative")
    assert configure(Settings, ["--B=3", second, first]).B == 3


def test_config_files_are_python(config_file):
    lines = (
        "import math",
        "_half = 4",
        "def double(x): return 2 * x",
        "B = double(_half)",
        "max_lr = 1 / math.sqrt(4)",
    )
    path = config_file("\n".join(lines))
    assert configure(Settings, [path]) == Settings(B=8, max_lr=0.5)


@pytest.mark.parametrize("argv", [["--device=cpu"], ["--device", "cpu"]])
def test_both_flag_styles(argv):
    assert configure(Settings, argv).device == "cpu"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--resume"], True),
        (["--resume=True"], True),
        (["--resume", "true"], True),
        (["--resume", "--B", "2"], True),
        (["--no-resume"], False),
        (["--resume", "--no-resume"], False),
        (["--resume=false"], False),
    ],
)
def test_each_way_to_give_a_boolean(argv, expected):
    assert configure(Settings, argv).resume is expected


def test_a_boolean_that_may_be_undecided():
    decided = [configure(Settings, argv).compile for argv in ([], ["--compile"], ["--no-compile"], ["--compile=None"])]
    assert decided == [None, True, False, None]


def test_floats_survive_exactly(config_file):
    assert configure(Settings, [config_file("max_lr = 0.1 + 0.2")]).max_lr == 0.1 + 0.2


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--max_rl", "1"], ["--max_rl", "did you mean max_lr?"]),
        (["--B", "four"], ["--B", "'four'", "an integer"]),
        (["--B", "1.5"], ["an integer"]),
        (["--B"], ["--B needs a value", "an integer"]),
        (["--B", "--resume"], ["--B needs a value"]),
        (["--device", "gpu"], ["--device", "'gpu'", "one of auto, cpu"]),
        (["--max_lr=high"], ["a number"]),
        (["--resume=maybe"], ["True or False"]),
        (["--B", "0"], ["B = 0", "at least 1"]),
        (["config/absent.py"], ["config/absent.py", "no such config file"]),
        (["-B", "4"], ["-B", "no such config file"]),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, words):
    with pytest.raises(UserError) as error:
        configure(Settings, argv)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_rl = 1", ["a.py", "max_rl", "did you mean max_lr?"]),
        ("B = 1.5", ["a.py", "B", "an integer"]),
        ("B = 'four'", ["an integer"]),
        ("device = 'gpu'", ["one of auto, cpu"]),
        ("B = 1 +", ["a.py", "SyntaxError"]),
        ("B = 1 / 0", ["a.py", "ZeroDivisionError"]),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(config_file, text, words):
    with pytest.raises(UserError) as error:
        configure(Settings, [config_file(text)])
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_help_lists_each_key_with_its_default_and_meaning(capsys, config_file):
    with pytest.raises(SystemExit) as stop:
        configure(Settings, [config_file("B = 7"), "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--max_lr", "peak", "0.0006", "--B", "batch", "7", "config/FILE.py"))
