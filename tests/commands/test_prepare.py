import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from corpus import FILE_BYTES, make_documents, parquet_bytes, read_documents, tokenizer_or_skip
from helpers import ROOT
from hub_server import serve

import prepare
from system.lock import folder_lock
from text.sources import SOURCES, Source, stdlib_files
from tokens.shards import open_data


def run(*args):
    """Run prepare.py in this process; returns its exit code."""
    try:
        prepare.main([str(arg) for arg in args])
        return 0
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def prepared(tmp_path):
    """A source, the folder prepared from it, and the arguments."""
    (tmp_path / "a.txt").write_text("some text, " * 500)
    args = [tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out"]
    assert run(*args) == 0
    return tmp_path / "a.txt", tmp_path / "out", args


def test_validation_is_the_last_tenth_of_the_characters(tmp_path):
    text = "".join(make_documents(30))
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert run(tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out") == 0
    cut = int(len(text) * 0.9)
    assert read_documents(tmp_path / "out") == {"train": [text[:cut]], "val": [text[cut:]]}


@pytest.mark.parametrize("name", ["byte", "gpt2"])
@pytest.mark.parametrize("kind", FILE_BYTES)
def test_documents_are_all_kept_in_order(tmp_path, kind, name):
    tokenizer_or_skip(name)
    texts = make_documents(200)
    (tmp_path / f"a.{kind}").write_bytes(FILE_BYTES[kind](texts))
    run(tmp_path / f"a.{kind}", "--tokenizer", name, "--out", tmp_path / "out", "--val", 0.3)
    splits = read_documents(tmp_path / "out")
    *train, head = splits["train"]
    tail, *val = splits["val"]
    assert [*train, head + tail, *val] == texts or [*train, head, tail, *val] == texts
    assert len("".join([*train, head])) == int(len("".join(texts)) * 0.7)


def test_worker_processes_write_the_same_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "SINGLE_PROCESS_BYTES", 0)
    monkeypatch.setattr("text.documents.PIECE_BYTES", 1000)
    texts = make_documents(100)
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(texts))
    args = [tmp_path / "a.parquet", "--tokenizer", "byte", "--num_proc", 2]
    assert run(*args, "--out", tmp_path / "two") == 0
    monkeypatch.undo()
    assert run(*args, "--out", tmp_path / "one") == 0
    shards = [[p.read_bytes() for p in sorted((tmp_path / name).glob("*.npy"))] for name in ("one", "two")]
    assert shards[0] == shards[1]


def test_sources_each_give_their_end_to_validation(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "x.txt").write_text("a" * 1000)
    (tmp_path / "a" / "__init__.py").touch()  # the only empty file that is not an error
    (tmp_path / "b" / "x.txt").write_text("b" * 1000)
    run(tmp_path / "a", str(tmp_path / "b" / "*.txt"), "--tokenizer", "byte", "--out", tmp_path / "out")
    assert read_documents(tmp_path / "out") == {"train": ["a" * 900, "b" * 900], "val": ["a" * 100, "b" * 100]}


def test_source_is_added_by_one_table_entry(tmp_path, monkeypatch):
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(split * 100)
    files = {split: [str(tmp_path / f"{split}.txt")] for split in ("train", "val")}
    monkeypatch.setitem(SOURCES, "mine", Source("my own text", lambda options: files))
    monkeypatch.chdir(tmp_path)
    assert run("mine", "--tokenizer", "byte") == 0
    assert read_documents("data/mine_byte") == {"train": ["train" * 100], "val": ["val" * 100]}


def test_source_with_its_own_shards_is_prepared_alone(tmp_path, capsys):
    assert run("stdlib", "shakespeare", "--out", tmp_path) == 2
    assert "shakespeare with the gpt2 tokenizer has its own shards; prepare it alone" in capsys.readouterr().err


def test_help_and_a_missing_source_list_the_named_sources(capsys):
    assert run() == 2
    error = capsys.readouterr().err
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert all(name in error and name in printed for name in SOURCES)


def test_quickstart_command_prepares_the_standard_library(tmp_path):
    command = [sys.executable, ROOT / "prepare.py", "stdlib", "--tokenizer", "byte", "--out", "data/stdlib"]
    out = subprocess.check_output(command, cwd=tmp_path, text=True, stderr=subprocess.DEVNULL, timeout=60)
    assert out.splitlines()[-1] == "next: python train_gpt2.py config/own_text.py --data_dir data/stdlib"
    data = open_data(tmp_path / "data/stdlib", "make")
    assert data.tokens("train") == pytest.approx(9 * data.tokens("val"), rel=0.01)
    assert data.max_id == 256
    count = len(stdlib_files())
    assert data.meta["documents"] in (count, count + 1)  # one may be cut in two


def test_same_text_twice_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("some text, " * 500)
    (tmp_path / "link.txt").symlink_to("notes/a.txt")
    for second, message in (
        ("notes/a.txt", "notes/a.txt is given twice"),
        ("./notes/a.txt", "is in two sources, notes/a.txt and ./notes/a.txt"),
        ("notes", "is in two sources, notes/a.txt and notes"),
        ("link.txt", "is in two sources, notes/a.txt and link.txt"),
    ):
        assert run("notes/a.txt", second, "--tokenizer", "byte", "--out", "out") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FILE_BYTES)
def test_text_field_names_another_field(tmp_path, capsys, kind):
    texts = make_documents(100)
    (tmp_path / f"a.{kind}").write_bytes(FILE_BYTES[kind](texts).replace(b"text", b"txet"))
    texts = [text.replace("text", "txet") for text in texts]
    args = [tmp_path / f"a.{kind}", "--tokenizer", "byte", "--out", tmp_path / "out"]
    assert run(*args) == 2
    assert "--text_field" in capsys.readouterr().err
    assert run(*args, "--text_field", "txet") == 0
    splits = read_documents(tmp_path / "out")
    assert "".join(splits["train"] + splits["val"]) == "".join(texts)
    assert run(*args, "--text_field", "txet") == 0
    assert run(*args, "--text_field", "other") == 2
    assert "with text_field txet; give another --out" in capsys.readouterr().err


def test_overwrite_keeps_the_old_shards_where_the_new_text_fails(prepared, capsys):
    source, out, args = prepared
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    source.write_bytes(b"some text, " * 500 + b"\xff")
    assert run(*args, "--overwrite") == 2
    assert "a.txt is not UTF-8 text" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_two_preparations_never_write_into_one_folder(prepared, capsys):
    _, out, args = prepared
    with folder_lock(out):
        assert run(*args) == 0, "a finished result is only read"
        assert run(*args, "--overwrite") == 2
    assert f"{out} is in use by process" in capsys.readouterr().err


def test_same_request_again_changes_nothing(prepared, capsys):
    _, out, args = prepared
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(*args) == 0
    assert "already holds just this" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_request_is_refused_unless_overwrite(prepared, capsys):
    source, out, args = prepared
    assert run(*args, "--val", "0.2") == 2
    assert "with val 0.1; give another --out, or --overwrite" in capsys.readouterr().err
    source.write_text("changed, " * 600)
    assert run(*args) == 2
    assert "whose files have changed since" in capsys.readouterr().err
    assert run(*args, "--format", "bin", "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["a_train_000001.bin", "a_val_000000.bin", "meta.json"]


def test_interrupted_preparation_is_continued_across_the_splits(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(FILE_BYTES["jsonl"](make_documents(300)))
    args = [tmp_path / "a.jsonl", "--tokenizer", "byte", "--out"]
    monkeypatch.setattr("text.documents.PIECE_BYTES", 2000)
    with monkeypatch.context() as patch:
        patch.setattr("text.shard_writer.ShardWriter.close", lambda writer: 1 / 0)  # before the training shard
        with pytest.raises(ZeroDivisionError):
            run(*args, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_val_000000.npy", "progress.json"]
    shards = []
    for name in ("out", "undisturbed"):
        assert run(*args, tmp_path / name) == 0
        shards.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.npy")})
    assert shards[0] == shards[1]


@pytest.mark.parametrize(("content", "reason"), [(b"", "a.txt is empty"), (b"hi", "a.txt is too short")])
def test_unusable_text_ends_with_one_line(tmp_path, capsys, content, reason):
    (tmp_path / "a.txt").write_bytes(content)
    assert run(tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert reason in errors[0]
    assert not list((tmp_path / "out").glob("*.npy"))


def test_shakespeare_uses_the_text_it_finds_and_verifies_it(tmp_path, monkeypatch):
    text = "First Citizen:\nBefore we proceed, hear me.\n\n" * 50
    find = SOURCES["shakespeare"].find
    file, urls, _ = find.args
    changed = type(find)(find.func, file, urls, hashlib.sha256(text.encode()).hexdigest())
    monkeypatch.setitem(SOURCES, "shakespeare", Source("", changed))
    (tmp_path / file).write_text(text)
    assert run("shakespeare", "--tokenizer", "byte", "--out", tmp_path) == 0
    splits = read_documents(tmp_path)
    assert "".join(splits["train"] + splits["val"]) == text


def test_tinystories_keeps_its_own_validation_split(tmp_path):
    stories = {"train": make_documents(60, seed=1), "validation": make_documents(20, seed=2)}
    files = {f"data/{split}-00000-of-00001.parquet": parquet_bytes(texts) for split, texts in stories.items()}
    with serve("roneneldan/TinyStories", files) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, ROOT / "prepare.py", "tinystories", "--tokenizer", "byte"]
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=60)
    splits = read_documents(tmp_path / "data" / "tinystories_byte")
    assert splits == {"train": stories["train"], "val": stories["validation"]}


def test_inspect_exits_with_2_for_a_flipped_bit(prepared, capsys):
    _, out, _ = prepared
    assert run("--inspect", out) == 0
    data = np.load(out / "a_train_000001.npy")
    data[-1] ^= 1
    np.save(out / "a_train_000001.npy", data)
    assert run("--inspect", out) == 2
    assert "a_train_000001.npy has changed" in capsys.readouterr().err
