"""A script that is forked from a process with torch does what it does in a new interpreter."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from fork_server import ForkedProcess
from helpers import run_script, start_python

PROBE = """
import atexit, os, signal, sys, threading
from pathlib import Path
atexit.register(print, "at exit", file=sys.stderr)
print(__name__, __file__, sys.modules["__main__"].__file__, sys.argv, sys.path[0], os.getcwd())
print(sorted(os.environ.items()))
files = [str(getattr(module, "__file__", "")) for module in sys.modules.values()]
print([file for file in files if "ROOT" in file and "site-packages" not in file])  # .venv may be in ROOT
for stream in (sys.stdin, sys.stdout, sys.stderr):
    print(stream.encoding, stream.errors, stream.newlines, stream.seekable(), stream.line_buffering, stream.fileno())
print([signal.getsignal(number) for number in signal.valid_signals()], os.listdir("/proc/self/fd"), os.umask(0))
print(os.getpgrp() == os.getpid(), threading.active_count(), repr(sys.stdin.read()), "ö")
print("a\\rb", file=sys.stderr)
"""
ENDS = (
    "sys.exit(3)",
    "sys.exit('words')",
    "1 / 0",
    "os._exit(5)",
    "os.kill(os.getpid(), signal.SIGKILL)",
    "os.kill(os.getpid(), signal.SIGINT)",
    "threading.Timer(0.1, print, ['later']).start()",
    "sys.stdout.buffer.close()",
)


@pytest.mark.parametrize("end", ENDS)
def test_forked_script_prints_and_exits_as_in_a_new_interpreter(tmp_path, end):
    script = tmp_path / "script.py"
    script.write_text(PROBE.replace("ROOT", os.path.dirname(os.path.dirname(__file__))) + end)
    arguments, options = ["-u", "two words", ""], {"cwd": tmp_path, "stdin": "é\r\n"}
    forked, new = (run_script(script, *arguments, fresh=fresh, **options) for fresh in (False, True))
    assert (forked.returncode, forked.stdout) == (new.returncode, new.stdout)
    assert without_frames(forked.stderr) == without_frames(new.stderr)


def without_frames(text):
    return [line for line in text.splitlines() if not line.startswith(" ")]


def test_forked_script_is_stopped_by_a_timeout_and_by_a_signal(tmp_path):
    (tmp_path / "sleep.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    with pytest.raises(subprocess.TimeoutExpired):
        run_script(tmp_path / "sleep.py", timeout=0.5)
    process = start_python(tmp_path / "sleep.py", stdout=subprocess.PIPE)
    assert int(process.stdout.readline()) == process.pid
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == process.poll() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_another_environment_begins_with_a_new_interpreter(tmp_path, monkeypatch):
    (tmp_path / "empty.py").touch()
    forks = sys.platform == "linux" and not torch.cuda.is_available()

    def is_forked(**options):
        process = start_python(tmp_path / "empty.py", **options)
        assert process.wait(10) == 0
        return isinstance(process, ForkedProcess)

    assert is_forked() == forks
    assert not is_forked(fresh=True)
    assert not is_forked(env={"OMP_NUM_THREADS": "2"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not is_forked()
