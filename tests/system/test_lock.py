"""A folder has one writer: others are refused by name, and the lock of a dead process does not count."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT

from system.errors import UserError
from system.lock import folder_lock

HOLD = "import sys, time; from system.lock import folder_lock\nwith folder_lock(sys.argv[1]): print(1); time.sleep(60)"


def test_folder_lock_names_its_owner_and_ends_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-uc", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    holder.stdout.readline()
    refused = pytest.raises(UserError, match=rf"is in use by process {holder.pid} on .+, since \d{{4}}-.*: wait until")
    with refused, folder_lock(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert ".lock" in os.listdir(tmp_path), "a killed process leaves its files"
    with folder_lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_folder_lock_removes_only_folders_that_it_made_and_nothing_was_put_in(tmp_path):
    with folder_lock(tmp_path / "a" / "b"):
        (tmp_path / "a" / "x").touch()
    assert os.listdir(tmp_path / "a") == ["x"]
    (tmp_path / "kept").mkdir()
    with folder_lock(tmp_path / "kept"):
        pass
    assert (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "it is a file"), ("file/x", "Not a directory"), ("x" * 300, "name too long")],
)
def test_folder_lock_explains_a_folder_that_cannot_be_written(tmp_path, name, reason):
    (tmp_path / "file").touch()
    refused = pytest.raises(UserError, match=rf"cannot be written \(.*{reason}.*\): choose another folder")
    with refused, folder_lock(tmp_path / name):
        pass
    assert os.listdir(tmp_path) == ["file"]
