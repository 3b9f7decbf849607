"""Printing never raises and never blocks for long, whatever stdout is connected to."""

import io
import os
import sys

import pytest

from system import terminal
from system.terminal import Terminal, show_any_text


@pytest.fixture
def pipe(monkeypatch):
    """(file descriptor of the reading end, a text stream into a pipe that stands in for stdout)."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.05)
    yield reader, stream
    monkeypatch.undo()
    stream.close()


def test_terminal_survives_a_closed_pipe_and_says_so_once(pipe, capsys):
    os.close(pipe[0])
    screen = Terminal()
    for _ in range(3):
        screen.print("a line")
    assert screen.lost == "Broken pipe"
    assert capsys.readouterr().err == "warning: output was lost (Broken pipe); the program goes on\n"


def test_terminal_survives_a_full_disk(monkeypatch):
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        screen = Terminal()
        screen.print("a line")
        assert screen.lost == "No space left on device"


def test_terminal_drops_lines_while_nothing_reads_them(pipe):
    reader, _ = pipe
    screen = Terminal()
    for number in range(10_000):
        screen.print(f"line {number}")
    assert screen.lost == "nothing reads it"
    shown = os.read(reader, 1 << 20).decode()
    assert shown.startswith("line 0\nline 1\n")
    screen.print("read again")
    assert os.read(reader, 100) == b"read again\n"
    os.close(reader)


def test_terminal_shows_characters_that_its_encoding_lacks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    show_any_text()
    Terminal().print("rör \udcff")
    assert stream.buffer.getvalue() == b"r\\xf6r \\udcff\n"


def test_terminal_without_stdout_prints_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    Terminal().print("a line")
