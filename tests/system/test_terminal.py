"""Printing never raises and never blocks for long, whatever stdout is connected to."""

import contextlib
import io
import os
import sys

from system import terminal
from system.terminal import Terminal, show_any_text


@contextlib.contextmanager
def stdout_to_a_pipe():
    """Connect stdout to a pipe; yields the file descriptor of its reading end."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, contextlib.redirect_stdout(stream):
        yield reader


def test_terminal_survives_a_closed_pipe_and_says_so_once(capsys):
    with stdout_to_a_pipe() as reader:
        os.close(reader)
        screen = Terminal()
        for _ in range(3):
            screen.print("a line")
    assert screen.lost == "Broken pipe"
    assert capsys.readouterr().err == "warning: output was lost (Broken pipe); the program goes on\n"


def test_terminal_survives_a_full_disk():
    screen = Terminal()
    with open("/dev/full", "w", encoding="utf-8") as full, contextlib.redirect_stdout(full):
        screen.print("a line")
    assert screen.lost == "No space left on device"


def test_terminal_drops_lines_while_nothing_reads_them(monkeypatch):
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.05)
    screen = Terminal()
    with stdout_to_a_pipe() as reader:
        for number in range(10_000):
            screen.print(f"line {number}")
        shown = os.read(reader, 1 << 20).decode()
        screen.print("read again")
        assert os.read(reader, 100) == b"read again\n"
        os.close(reader)
    assert screen.lost == "nothing reads it"
    assert shown.startswith("line 0\nline 1\n")


def test_terminal_shows_characters_that_its_encoding_lacks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    show_any_text()
    Terminal().print("rör \udcff")
    assert stream.buffer.getvalue() == b"r\\xf6r \\udcff\n"


def test_terminal_without_stdout_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    Terminal().print("a line")
