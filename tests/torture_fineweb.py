"""Kill fineweb.py at random moments, start it again each time, and compare with an uninterrupted run.

python tests/torture_fineweb.py --kills 20
"""

import argparse
import hashlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]

from corpus import make_documents, parquet_bytes
from helpers import restore_ctrl_c

SCRIPT = Path(__file__).parents[1] / "fineweb.py"


def make_source(folder, files=4, documents=3000):
    """Parquet files with FineWeb's columns."""
    folder.mkdir(parents=True)
    for i in range(files):
        texts = make_documents(documents, seed=i, words=200)
        (folder / f"{i:03d}_00000.parquet").write_bytes(parquet_bytes(texts, row_group_size=100))
    return folder


def start(source, out, *args):
    command = [sys.executable, SCRIPT, "--source", source, "--out", out, "--tokenizer", "byte", *args]
    return subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=restore_ctrl_c if os.name == "posix" else None,  # noqa: PLW1509 (no threads here)
    )


def complete(source, out, *args):
    """Run fineweb.py to the end; returns its output. Raises if the exit code is not 0."""
    process = start(source, out, *args)
    text = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, text
    return text


def checksums(out):
    """The checksum of each finished shard."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.npy")}


def kill_when(process, condition):
    """Kill a process (SIGKILL) as soon as `condition()` is true. Returns whether it was still running."""
    while not condition() and process.poll() is None:
        time.sleep(0.001)
    was_running = process.poll() is None
    process.kill()
    process.wait()
    process.stdout.close()
    return was_running


def is_part(found, whole):
    """Whether each finished shard has the expected checksum."""
    return all(whole.get(name) == digest for name, digest in found.items())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    settings = parser.parse_args()
    rng = random.Random(settings.seed)
    passed = failed = running = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_source(folder / "source")
        begin = time.monotonic()
        complete(source, folder / "uninterrupted")
        seconds = time.monotonic() - begin
        whole = checksums(folder / "uninterrupted")
        out = folder / "out0"
        for kill in range(1, settings.kills + 1):
            end = time.monotonic() + rng.uniform(0, seconds)
            running += kill_when(start(source, out), lambda end=end: time.monotonic() > end)
            ok = is_part(checksums(out), whole)
            if (out / "meta.json").exists() or kill == settings.kills:  # finished, or the last kill: complete it
                complete(source, out)
                ok = ok and checksums(out) == whole
                out = folder / f"out{kill}"
            passed, failed = passed + ok, failed + (not ok)
            print(f"kill {kill}: {'same shards' if ok else 'DIFFERENT SHARDS'}", flush=True)
    print(f"{running} of {settings.kills} kills hit a running process")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
