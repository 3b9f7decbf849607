"""AtomicFile writes all of a file or nothing; output paths are checked before anything is computed."""

import errno
import os

import pytest
from helpers import file_size_limit

from system.errors import UserError
from system.files import AtomicFile, link_or_copy, require_new_path, require_writable_file


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
    for name in (".x.bin.tmp", ".x.bin.0123abcd.tmp", ".x.bin.tmp.mine", ".y.x.bin.0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"the first half of a longer file")
    with AtomicFile(tmp_path / "x.bin") as f:
        f.write(b"new")
    assert (tmp_path / "x.bin").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"x.bin", ".x.bin.tmp.mine", ".y.x.bin.0123abcd.tmp"}


def test_atomic_file_of_two_writers_holds_what_the_last_one_wrote(tmp_path):
    with AtomicFile(tmp_path / "x.bin") as first:
        first.write(b"first")
        with AtomicFile(tmp_path / "x.bin") as second:
            second.write(b"second")
        assert (tmp_path / "x.bin").read_bytes() == b"second"
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.bin", b"first")]


def test_atomic_file_writes_through_links_and_refuses_devices(tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "log.txt", tmp_path / "log.txt"
    link.symlink_to(target)
    for content in (b"new", b"newer"):  # the link dangles at first
        with AtomicFile(link) as f:
            f.write(content)
        assert (link.is_symlink(), target.read_bytes()) == (True, content)
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a pipe"), ("/dev/full", "a device"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=f"is {kind}, expected a file"), AtomicFile(path):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "log.txt", "pipe"}


@pytest.mark.parametrize("chunk", [10, 100_000])
def test_atomic_file_on_a_full_disk_keeps_the_old_file(tmp_path, chunk):
    (tmp_path / "x.bin").write_bytes(b"old")

    def write():
        with AtomicFile(tmp_path / "x.bin") as f:
            for _ in range(100_000 // chunk):
                f.write(b"x" * chunk)

    with file_size_limit(4096), pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.errno == errno.EFBIG
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x.bin", b"old")]


@pytest.mark.parametrize("check", [require_new_path, require_writable_file])
def test_output_paths_that_cannot_be_written_are_refused(tmp_path, check):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    check(tmp_path / "new" / "folder" / "x")
    paths = (tmp_path, tmp_path / "file" / "x", tmp_path / "file" / "x" / "y", tmp_path / "loop", "/dev/full")
    for path in ("", ".", "/", "..", "new/..", *paths):
        with pytest.raises(UserError) as caught:
            check(path)
        assert "\n" not in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


def test_require_new_path_refuses_what_exists_and_require_writable_file_replaces_it(tmp_path):
    (tmp_path / "file").touch()
    require_writable_file(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    require_writable_file(tmp_path / "link")
    for name in ("file", "link"):
        with pytest.raises(UserError, match="exists already; choose another --out"):
            require_new_path(tmp_path / name)


@pytest.mark.parametrize("has_links", [True, False])
def test_link_or_copy_gives_a_second_name_or_a_copy(tmp_path, monkeypatch, has_links):
    def refuse(*args):
        raise OSError(errno.EPERM, "this file system has no hard links")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "best").write_bytes(b"old")
    link_or_copy(tmp_path / "new", tmp_path / "best")
    assert (tmp_path / "best").read_bytes() == b"new"
    assert os.path.samefile(tmp_path / "new", tmp_path / "best") == has_links
    assert len(list(tmp_path.iterdir())) == 2, "no temporary file is left"
