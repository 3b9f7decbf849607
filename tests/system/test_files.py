"""AtomicFile writes all of a file or nothing."""

import pytest

from system.files import AtomicFile


def test_atomic_file_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "x.bin"
    with AtomicFile(path) as f:
        f.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_file_keeps_the_old_file_on_an_exception(tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(b"old")

    def fail():
        with AtomicFile(path) as f:
            f.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_file_replaces_what_a_killed_process_left(tmp_path):
    (tmp_path / ".x.bin.tmp").write_bytes(b"the first half of a longer file")
    with AtomicFile(tmp_path / "x.bin") as f:
        f.write(b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.bin", b"new")]
