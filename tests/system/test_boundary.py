"""The boundary for foreign bytes: every exception becomes one line that names the file."""

import json
import os

import pytest

from system import boundary
from system.boundary import foreign
from system.errors import UserError


class RustPanic(BaseException):
    """Like the panics of Rust libraries, no `Exception`."""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad\nsecond line"), "FILE is damaged or not a cat (ValueError: bad); copy it again"),
        (KeyError("x"), "FILE is damaged or not a cat (KeyError: 'x'); copy it again"),
        (AssertionError(), "FILE is damaged or not a cat (AssertionError); copy it again"),
        (RustPanic("\x1b[31mindex"), "FILE is damaged or not a cat (RustPanic: ?[31mindex); copy it again"),
        (OSError("no strerror"), "FILE is damaged or not a cat (OSError: no strerror); copy it again"),
        (FileNotFoundError(2, "No such file"), "FILE: No such file; expected a cat"),
        (MemoryError(), "FILE needs more memory than is available"),
        (UserError("already one line"), "already one line"),
        (StopIteration(), "FILE is damaged or not a cat (StopIteration); copy it again"),
    ],
)
def test_foreign_turns_every_exception_into_one_line(error, line):
    with pytest.raises(UserError) as caught, foreign("FILE", "a cat"):
        raise error
    assert str(caught.value) == line


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_foreign_lets_what_is_not_about_the_bytes_pass(error):
    with pytest.raises(error), foreign("FILE", "a cat"):
        raise error


def test_require_regular_file_refuses_everything_else(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name in ("file", "link"):
        boundary.require_regular_file(tmp_path / name, "a cat")
    for path, words in (
        (tmp_path, "is a folder; expected a cat"),
        (tmp_path / "pipe", "is a pipe; expected a cat"),
        ("/dev/null", "is a device; expected a cat"),
        (tmp_path / "absent", "No such file or directory; expected a cat"),
        (tmp_path / ("x" * 300), "File name too long; expected a cat"),
    ):
        with pytest.raises(UserError, match=words):
            boundary.require_regular_file(path, "a cat")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is damaged or not JSON"),
        (b"\xff", "is damaged or not JSON"),
        (b"", "is damaged or not JSON"),
        (b"[1]", r"holds \[1\], expected a JSON object"),
        (b'{"a":' * 100_000, "is damaged or not JSON"),
        (json.dumps({"a": [[[]]]}).replace("[]", "[" * 200 + "]" * 200).encode(), "nests lists or objects more than"),
        (b'{"a": "' + b"x" * 1000 + b'"}', "expected a JSON file of at most 999"),
    ],
)
def test_read_json_refuses_what_is_no_object(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        boundary.read_json(path, max_bytes=999 if len(content) < 5000 else 10**7)
    path.write_text('{"a": [{"b": 1}]}')
    assert boundary.read_json(path) == {"a": [{"b": 1}]}


def test_require_fields_names_the_field_and_its_type():
    record = {"name": "x", "count": 3, "limit": None}
    boundary.require_fields(record, "FILE", name=str, count=int, limit=(int, type(None)))
    for types, line in (
        ({"count": str}, "FILE: count = 3, expected str"),
        ({"count": bool}, "FILE: count = 3, expected bool"),
        ({"name": (int, type(None))}, "FILE: name = 'x', expected int or null"),
        ({"shards": list}, "FILE has no 'shards'"),
    ):
        with pytest.raises(UserError) as caught:
            boundary.require_fields(record, "FILE", **types)
        assert str(caught.value) == line


def test_show_shortens_any_value():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, list(range(10**5)), {"a": deep}):
        assert len(boundary.show(value)) < 200


def test_library_write_raises_what_a_library_raises_as_an_oserror():
    with pytest.raises(OSError, match="could not be written") as caught, boundary.library_write("FILE"):
        raise RustPanic("No space left on device")
    assert (caught.value.filename, "No space left" in caught.value.strerror) == ("FILE", True)
