"""`command` turns expected exceptions into exit codes."""

import signal
import subprocess
import sys

import pytest
from helpers import ROOT, restore_ctrl_c

from system.errors import NothingToDo, RankError, UserError, command


@command
def fail(error):
    raise error


@pytest.mark.parametrize(("rank", "printed"), [("0", "error: x = 3: expected 4\n"), ("1", "")])
def test_command_prints_a_user_error_on_rank_0_and_exits_2(monkeypatch, capsys, rank, printed):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        fail(UserError("x = 3: expected 4"))
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", printed)


def test_command_prints_the_error_of_one_rank_on_that_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        fail(RankError("rank 1 has no GPU"))
    assert capsys.readouterr().err == "error: rank 1 has no GPU\n"


@pytest.mark.parametrize(("rank", "printed"), [("0", "finished\n"), ("1", "")])
def test_command_prints_that_nothing_is_to_do_and_exits_0(monkeypatch, capsys, rank, printed):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        fail(NothingToDo("finished"))
    assert stop.value.code == 0
    assert capsys.readouterr() == (printed, "")


def test_command_exits_130_on_ctrl_c():
    with pytest.raises(SystemExit) as stop:
        fail(KeyboardInterrupt())
    assert stop.value.code == 130


def test_command_keeps_other_exceptions():
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


def test_command_says_that_the_current_folder_was_deleted(monkeypatch, tmp_path, capsys):
    deleted = tmp_path / "deleted"
    deleted.mkdir()
    monkeypatch.chdir(deleted)
    deleted.rmdir()
    with pytest.raises(SystemExit) as stop:
        command(lambda: None)()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: the current folder no longer exists: change to another one\n"


def test_command_exits_0_without_a_message_when_stdout_is_closed():
    code = "from system.errors import command; command(lambda: [print(i, flush=True) for i in range(10**6)])()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 0
    assert process.stderr.read() == b""


def test_command_that_is_interrupted_while_it_imports_exits_130_without_a_traceback():
    script = [sys.executable, "-X", "importtime", str(ROOT / "train_gpt2.py")]
    process = subprocess.Popen(
        script,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_ctrl_c,  # noqa: PLW1509 (no threads here)
    )
    next(line for line in process.stderr if "numpy" in line)  # torch is being imported
    process.send_signal(signal.SIGINT)
    assert process.stderr.read().endswith("\ninterrupted\n")
    assert process.wait(30) == 130
