import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpus import FILE_BYTES, make_documents, parquet_bytes, split_documents
from hub_server import serve
from torture_fineweb import SCRIPT, checksums, complete, is_part, kill_when, make_source, start

import fineweb
from fineweb import choose_shard_tokens, cut_sequence
from system.lock import folder_lock
from tokens.shards import open_data
from tokens.tokenizer import get_tokenizer

SHARD = 5000  # tokens
REPO = "HuggingFaceFW/fineweb-edu"
CARD = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
"""
TEXTS = [make_documents(200, seed=i) for i in range(3)]
ALL = [text for texts in TEXTS for text in texts]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder of three parquet files, the checksums of their shards, and the folder of shards."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "source").mkdir()
    for i, texts in enumerate(TEXTS):
        (folder / "source" / f"{i:03d}_00000.parquet").write_bytes(parquet_bytes(texts))
    complete(folder / "source", folder / "out", "--num_proc", 2, "--shard_tokens", SHARD)
    return folder / "source", checksums(folder / "out"), folder / "out"


@contextlib.contextmanager
def serve_hub(source, home):
    """A hub that has those files, and the environment to find it."""
    files = {f"sample/10BT/{path.name}": path.read_bytes() for path in source.iterdir()}
    files |= {"README.md": CARD, "data/CC-MAIN-2013-20/train-00000-of-00001.parquet": parquet_bytes(TEXTS[0])}
    with serve(REPO, files) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(home / "hf"), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}
        yield server, env


def run(env, out, *args):
    options = ["--tokenizer", "byte", "--num_proc", 2, "--shard_tokens", SHARD]
    command = [sys.executable, SCRIPT, *options, "--out", out, *args]
    return subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=120, check=False)


def read_ids(out):
    """All tokens of a folder, the validation split first."""
    data = open_data(out, "make")
    return np.concatenate([*data.splits["val"], *data.splits["train"]]).tolist()


def test_local_files_become_equal_shards_with_one_for_validation(local):
    _, _, out = local
    data = open_data(out, "make")
    assert data.splits["val"].lengths.tolist() == [SHARD]
    assert set(data.splits["train"].lengths[:-1]) == {SHARD}
    ids = read_ids(out)
    assert split_documents(ids, get_tokenizer("byte")) == ALL
    size = sum(len(text.encode()) for text in ALL)
    assert data.meta["documents"] == len(ALL)
    assert data.meta["tokens"] == len(ids) == size + len(ALL)
    assert data.meta["bytes"] == size
    assert data.meta["bytes_per_token"] == pytest.approx(size / len(ids), abs=1e-4)
    assert data.meta["seconds"] > 0


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_gives_the_same_shards_and_requests_are_retried(local, tmp_path, streaming):
    source, expected, _ = local
    with serve_hub(source, tmp_path) as (server, env):
        server.faults |= {"busy": 3, "drop": 1}
        done = run(env, tmp_path / "out", *(["--streaming"] if streaming else []))
        assert done.returncode == 0, done.stderr
        assert checksums(tmp_path / "out") == expected
        assert server.faults["busy"] == server.faults["drop"] == 0
        assert "too many requests); trying again in" in done.stderr
        whole = [path for method, path, range_ in server.log if method == "GET" and path.endswith("t") and not range_]
        assert bool(whole) != streaming  # with --streaming, only parts of files are requested
        if not streaming:
            server.faults["down"] = True
            done = run(env | {"HF_HUB_OFFLINE": "1"}, tmp_path / "again")
            assert done.returncode == 0, done.stderr
            assert checksums(tmp_path / "again") == expected


def test_fraction_downloads_only_that_part(local, tmp_path):
    source, _, _ = local
    with serve_hub(source, tmp_path) as (server, env):
        done = run(env, tmp_path / "out", "--fraction", "0.1")
        assert done.returncode == 0, done.stderr
        asked = {path for _, path, range_ in server.log if path.endswith(".parquet")}
        assert len(asked) == 1
        assert all(range_ for method, path, range_ in server.log if path in asked)
    texts = split_documents(read_ids(tmp_path / "out"), get_tokenizer("byte"))
    assert texts == ALL[: len(texts)]
    assert len(texts) == pytest.approx(0.1 * len(ALL), rel=0.1)


def test_patience_limits_the_retries(local, tmp_path):
    source, _, _ = local
    with serve_hub(source, tmp_path) as (server, env):
        server.faults["down"] = True
        done = run(env, tmp_path / "out", "--patience", "1")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ")
    assert all(way_out in error for way_out in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "--fraction"))
    assert "gave up after 1 s" in error


def test_patience_is_not_used_up_where_the_hubs_name_does_not_resolve(tmp_path):
    env = os.environ | {"HF_ENDPOINT": "http://hub.invalid", "HF_HOME": str(tmp_path / "hf")}
    done = run(env, tmp_path / "out")
    assert done.returncode == 2
    assert "trying again" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert "does not resolve" in error
    assert "Three ways out" in error
    assert not (tmp_path / "out").exists()


def table_bytes(texts, rows):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, "string")}), buffer, row_group_size=rows)
    return buffer.getvalue()


def run_here(*args):
    """Run fineweb.py in this process; returns its exit code."""
    try:
        fineweb.main([str(arg) for arg in args])
        return 0
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (table_bytes([None] * 50 + TEXTS[0], 50), [], None),
        (table_bytes([None] * 50, 50), [], "holds no text"),
        (table_bytes([], 50), [], "holds no text"),
        (table_bytes(TEXTS[0], 50), ["--fraction", "1e-12"], "holds no text in its first 1e-12"),
        (table_bytes(TEXTS[0], 50)[:-9], [], "a.parquet is damaged or not a whole parquet file"),
        (b"", [], "a.parquet is empty"),
    ],
)
def test_unusual_files_end_well_or_with_one_line(tmp_path, capsys, content, options, message):
    (tmp_path / "a.parquet").write_bytes(content)
    args = ["--source", tmp_path / "a.parquet", "--tokenizer", "byte", "--num_proc", 1, "--out", tmp_path / "out"]
    assert run_here(*args, *options) == (2 if message else 0)
    if message:
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
    else:
        assert split_documents(read_ids(tmp_path / "out"), get_tokenizer("byte")) == [text for text in TEXTS[0] if text]


def test_overwrite_keeps_the_old_shards_where_the_subset_is_unknown(local, tmp_path, capsys, monkeypatch):
    out = shutil.copytree(local[2], tmp_path / "out")
    monkeypatch.setattr(fineweb.hub, "is_offline", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    assert run_here("--subset", "sample-11BT", "--out", out, "--overwrite") == 2
    assert "is not in the cache" in capsys.readouterr().err
    assert checksums(out) == local[1]
    assert open_data(out, "make").meta == open_data(local[2], "make").meta


def test_cluster_worker_started_twice_is_refused(local, tmp_path, capsys):
    with folder_lock(tmp_path / ".worker_1_of_3"):
        assert run_here("--source", local[0], "--out", tmp_path, "--num_workers", 3, "--worker", 1) == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A source that takes a second to tokenize, and the checksums of its shards."""
    folder = tmp_path_factory.mktemp("long")
    source = make_source(folder / "source", files=2, documents=3000)
    complete(source, folder / "out", "--num_proc", 2)
    return source, checksums(folder / "out")


def test_killed_three_times_the_same_command_makes_the_same_shards(long_run, tmp_path):
    source, expected = long_run
    assert len(expected) in (20, 21)  # by default, a shard is a twentieth of a small corpus
    out, left = tmp_path / "out", []
    for shards in (1, 6, 13):
        process = start(source, out, "--num_proc", 1 + shards % 2)

        def moment(shards=shards, process=process):
            left[:] = children_of(process)
            return len(list(out.glob("*.npy"))) >= shards

        assert kill_when(process, moment)
        wait_for_end(left)
        found = checksums(out)
        assert 0 < len(found) < len(expected)
        assert is_part(found, expected)
        assert not (out / "meta.json").exists()
    assert "continuing after" in complete(source, out, "--num_proc", 2)
    assert checksums(out) == expected


def test_ctrl_c_leaves_no_process_and_workers_do_not_import_torch(long_run, tmp_path):
    process = start(long_run[0], tmp_path / "out", "--num_proc", 2)
    while not list((tmp_path / "out").glob("*.npy")):
        time.sleep(0.001)
    left = children_of(process)
    libraries = [path.read_text() for pid in [process.pid, *left] if (path := Path(f"/proc/{pid}/maps")).exists()]
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=30)[0].decode()
    assert process.returncode == 130
    assert "Traceback" not in text
    wait_for_end(left)
    assert not any("libtorch" in mapped for mapped in libraries)


def children_of(process):
    """The ids of a process's children; [] without /proc."""
    try:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        return []


def wait_for_end(pids):
    end = time.monotonic() + 10
    while any(map(is_running, pids)):
        assert time.monotonic() < end, "a process is still running"
        time.sleep(0.01)


def is_running(pid):
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file size are POSIX")
def test_full_disk_is_reported_with_the_space_needed_and_the_command_continues(long_run, tmp_path):
    source, expected = long_run
    out = tmp_path / "out"
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
    code = limit + f"sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = ["--source", source, "--out", out, "--tokenizer", "byte", "--num_proc", 1]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    error = done.stderr.splitlines()[-1]
    assert "no space left for" in error
    assert "more are needed" in error
    assert not list(out.glob("*.npy"))
    complete(source, out)
    assert checksums(out) == expected


@pytest.mark.parametrize("kind", FILE_BYTES)
def test_cluster_workers_together_write_all_documents(tmp_path, kind):
    for i, texts in enumerate(TEXTS):
        (tmp_path / f"{i}.{kind}").write_bytes(FILE_BYTES[kind](texts))
    args = ["--source", f"{tmp_path}/*.{kind}", "--out", f"{tmp_path}/out", "--num_workers=3", "--num_proc=1"]
    for worker in range(3):
        assert not (tmp_path / "out" / "meta.json").exists()
        fineweb.main([*args, f"--worker={worker}", "--tokenizer=byte", "--shard_tokens=10000"])
    assert len(list((tmp_path / "out").glob("*val*"))) == 1
    data = open_data(tmp_path / "out", "make")
    assert data.meta["documents"] == len(ALL)
    texts = []
    for worker in range(3):
        names = sorted((entry["file"] for entry in data.meta["shards"]), key=shard_number)
        mine = [np.load(tmp_path / "out" / name) for name in names if shard_number(name) % 3 == worker]
        texts += split_documents(np.concatenate(mine).tolist(), get_tokenizer("byte"))
    assert texts == ALL


def shard_number(name):
    return int(name[-10:-4])


def test_cut_sequence_parts_meet():
    files = [("a", 10), ("b", 0), ("c", 30)]
    assert cut_sequence(files, 0, 1) == [("a", 0.0, 1.0, 10), ("c", 0.0, 1.0, 30)]
    third = pytest.approx(1 / 3)
    assert cut_sequence(files, 0.125, 0.5) == [("a", 0.5, 1.0, 5), ("c", 0.0, third, pytest.approx(10))]


@pytest.mark.parametrize(
    ("asked", "expected", "shard"),
    [(None, 10**10, 10**8), (None, 10**7, 500_000), (None, 3, 1), (1000, 5000, 1000), (1000, 1500, 750)],
)
def test_choose_shard_tokens_leaves_training_shards(asked, expected, shard):
    assert choose_shard_tokens(asked, expected) == shard
