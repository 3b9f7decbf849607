import hashlib
import http.server
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from corpus import jsonl_bytes, make_documents, parquet_bytes, split_documents
from hub_server import serve

import prepare
from system.errors import UserError
from text import documents, shakespeare
from text.encoding import tokenize, tokenize_texts
from tokens.shards import open_data, write_shard
from tokens.tokenizer import get_tokenizer

ROOT = Path(__file__).parents[2]
KINDS = {"jsonl": jsonl_bytes, "parquet": parquet_bytes}


def run(*args):
    """prepare.py in this process: its exit code (0 where it returns)."""
    try:
        prepare.main([str(arg) for arg in args])
        return 0
    except SystemExit as stop:
        return stop.code


def tokenizer_or_skip(name):
    try:
        return get_tokenizer(name)
    except UserError as error:
        pytest.skip(str(error))


def read_documents(folder):
    """The texts of each split."""
    data = open_data(folder, "make")
    tokenizer = get_tokenizer(data.tokenizer)
    rows = {split: np.concatenate(shards).tolist() for split, shards in data.splits.items()}
    return {split: split_documents(ids, tokenizer) for split, ids in rows.items()}


def test_the_last_tenth_of_the_characters_is_validation(tmp_path):
    text = "".join(make_documents(30))
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert run(tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out") == 0
    cut = int(len(text) * 0.9)
    assert read_documents(tmp_path / "out") == {"train": [text[:cut]], "val": [text[cut:]]}


@pytest.mark.parametrize("name", ["byte", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_document_comes_back_in_order(tmp_path, kind, name):
    tokenizer_or_skip(name)
    texts = make_documents(200)
    (tmp_path / f"a.{kind}").write_bytes(KINDS[kind](texts))
    run(tmp_path / f"a.{kind}", "--tokenizer", name, "--out", tmp_path / "out", "--val", 0.3)
    splits = read_documents(tmp_path / "out")
    *train, head = splits["train"]
    tail, *val = splits["val"]
    assert [*train, head + tail, *val] == texts or [*train, head, tail, *val] == texts
    assert len("".join([*train, head])) == int(len("".join(texts)) * 0.7)


def test_tokens_are_tiktokens_document_by_document(tmp_path):
    tokenizer = tokenizer_or_skip("gpt2")
    texts = make_documents(100)
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(texts))
    got = [tokenize(piece, "gpt2").ids for piece, _ in documents.cut_file(str(tmp_path / "a.jsonl"))]
    assert np.concatenate(got).tolist() == [i for text in texts for i in [50256, *tokenizer.encode(text)]]


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_cutting_a_long_text_changes_no_token(tmp_path, monkeypatch, name):
    tokenizer = tokenizer_or_skip(name)
    text = "".join(make_documents(300, seed=3))
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(documents, "PIECE_BYTES", 50)
    pieces = [piece for piece, _ in documents.cut_file(str(path))]
    assert len(pieces) > 100
    got = np.concatenate([tokenize(piece, name).ids for piece in pieces])
    assert got.tolist() == [tokenizer.eot, *tokenizer.encode(text)]


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_parts_of_a_file_share_no_document_and_lose_none(tmp_path, monkeypatch, kind):
    texts = make_documents(150)
    path = str(tmp_path / f"a.{kind}")
    Path(path).write_bytes(KINDS[kind](texts))
    monkeypatch.setattr(documents, "PIECE_BYTES", 500)  # so that a row group counts as huge, too
    for edges in ([0, 1], [0, 0.1, 0.5, 0.501, 1], [0, 1 / 3, 2 / 3, 1]):
        parts = itertools.pairwise(edges)
        pieces = [item for start, stop in parts for item in documents.cut_file(path, start, stop)]
        assert [text for piece, _ in pieces for text in piece.texts()] == texts
        assert sum(share for _, share in pieces) == pytest.approx(1)


def test_the_standard_library_is_the_same_each_time_and_has_no_tests():
    folder = sysconfig.get_paths()["stdlib"]
    files = [Path(path).relative_to(folder) for path in prepare.stdlib_files(folder)]
    assert files == [Path(path).relative_to(folder) for path in prepare.stdlib_files(folder)]
    assert {Path("argparse.py"), Path("json/decoder.py"), Path("pydoc_data/topics.py")} <= set(files)
    assert not {"test", "tests", "site-packages", "__pycache__"} & {part for file in files for part in file.parts}


def test_quickstart_command_makes_a_folder_to_train_on(tmp_path):
    command = [sys.executable, ROOT / "prepare.py", "stdlib", "--tokenizer", "byte", "--out", "data/stdlib"]
    out = subprocess.check_output(command, cwd=tmp_path, text=True, stderr=subprocess.DEVNULL, timeout=60)
    assert out.splitlines()[-1] == "next: python train_gpt2.py --data_dir data/stdlib"
    data = open_data(tmp_path / "data/stdlib", "make")
    assert data.tokens("train") == pytest.approx(9 * data.tokens("val"), rel=0.01)
    assert data.max_id == 256
    count = len(prepare.stdlib_files(sysconfig.get_paths()["stdlib"]))
    assert data.meta["documents"] in (count, count + 1)  # one may be cut in two


@pytest.fixture
def prepared(tmp_path):
    """A source, the folder made of it, and the arguments."""
    (tmp_path / "a.txt").write_text("some text, " * 500)
    args = [tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out"]
    assert run(*args) == 0
    return tmp_path / "a.txt", tmp_path / "out", args


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_request_again_is_done_at_once(prepared, capsys):
    _, out, args = prepared
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(*args) == 0
    assert "already holds just this" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_another_request_is_refused_and_changes_nothing(prepared, capsys):
    source, out, args = prepared
    before = contents(out)
    assert run(*args, "--val", "0.2") == 2
    assert "with val 0.1; give another --out, or --overwrite" in capsys.readouterr().err
    source.write_text("changed, " * 600)
    assert run(*args) == 2
    assert "whose files have changed since" in capsys.readouterr().err
    assert contents(out) == before


def test_overwrite_replaces_the_shards_and_nothing_else(prepared):
    _, out, args = prepared
    (out / "notes.md").write_text("mine")
    assert run(*args, "--format", "bin", "--overwrite") == 0
    assert sorted(contents(out)) == ["a_train_000001.bin", "a_val_000000.bin", "meta.json", "notes.md"]


def test_shards_made_elsewhere_are_refused(tmp_path, capsys):
    np.save(tmp_path / "x_train_000001.npy", np.zeros(9, np.uint16))
    assert run("stdlib", "--tokenizer", "byte", "--out", tmp_path) == 2
    assert "made elsewhere" in capsys.readouterr().err


def test_an_interrupted_preparation_does_not_look_finished_and_is_completed(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(make_documents(300)))
    args = [tmp_path / "a.jsonl", "--tokenizer", "byte", "--out", tmp_path / "out"]
    monkeypatch.setattr(documents, "PIECE_BYTES", 2000)
    with monkeypatch.context() as patch:
        patch.setattr("text.encoding.tokenize_texts", fail_after(20))
        with pytest.raises(RuntimeError):
            run(*args)
    assert sorted(contents(tmp_path / "out")) == ["a_val_000000.npy", "progress.json"]
    with pytest.raises(UserError, match="unfinished"):
        open_data(tmp_path / "out", "make")
    run(*args)
    run(*args[:-1], tmp_path / "undisturbed")
    whole, undisturbed = contents(tmp_path / "out"), contents(tmp_path / "undisturbed")
    facts = [json.loads(folder.pop("meta.json")) | {"seconds": 0} for folder in (whole, undisturbed)]
    assert whole == undisturbed
    assert facts[0] == facts[1]


def test_a_shard_is_never_there_without_what_says_that_more_are_missing(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("some text, " * 500)
    args = [tmp_path / "a.txt", "--tokenizer", "byte", "--out", tmp_path / "out"]

    def write_and_die(*args):
        write_shard(*args)
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr("text.shard_writer.write_shard", write_and_die)
        with pytest.raises(RuntimeError):
            run(*args)
    with pytest.raises(UserError, match="unfinished"):
        open_data(tmp_path / "out", "make")
    assert run(*args) == 0
    assert open_data(tmp_path / "out", "make").tokens("val") == 551


def fail_after(count):
    calls = itertools.count()

    def tokenize_or_fail(*args):
        if next(calls) >= count:
            raise RuntimeError("the power went")
        return tokenize_texts(*args)

    return tokenize_or_fail


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"hi", "a.txt is too short"),
        ("a.txt", b"caf\xe9 " * 100, "a.txt is not UTF-8 text (byte 3)"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "a.jsonl, line 2: expected JSON like"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "a.jsonl, line 2: expected JSON like"),
        ("a.parquet", b"PAR1 no more", "a.parquet is not a whole parquet file"),
        ("a.csv", None, "a.csv: no such file or folder"),
    ],
)
def test_bad_text_is_named_in_one_line(tmp_path, capsys, name, content, reason):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert run(tmp_path / name, "--tokenizer", "byte", "--out", tmp_path / "out") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1
    assert reason in errors[0]
    assert not list((tmp_path / "out").glob("*.npy"))


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    for name in ("b/x.md", "a.txt", "b/a.py", ".git/x.txt", "picture.png", "b/__init__.py"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("" if "init" in name else name * 30)
    run(tmp_path / "in", "--tokenizer", "byte", "--out", tmp_path / "out")
    splits = read_documents(tmp_path / "out")
    assert "".join(splits["train"] + splits["val"]) == "a.txt" * 30 + "b/a.py" * 30 + "b/x.md" * 30


def test_several_sources_each_give_their_end_to_validation(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name * 1000)
    run(tmp_path / "a", str(tmp_path / "b" / "*.txt"), "--tokenizer", "byte", "--out", tmp_path / "out")
    assert read_documents(tmp_path / "out") == {"train": ["a" * 900, "b" * 900], "val": ["a" * 100, "b" * 100]}


def test_shakespeare_is_judged_by_its_checksum(tmp_path, monkeypatch, capsys):
    text = ("First Citizen:\nBefore we proceed, hear me.\n\n" * 50).encode()
    (tmp_path / "input.txt").write_bytes(text)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setattr(shakespeare, "URLS", ("http://127.0.0.1:9/input.txt",))  # nothing listens there
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirror = f"http://127.0.0.1:{server.server_port}/input.txt"
        args = ["shakespeare", "--tokenizer", "byte", "--out", tmp_path / "out", "--mirror", mirror]
        assert run(*args) == 2
        captured = capsys.readouterr()
        assert "another checksum" in captured.out
        assert "could not be fetched from 2 places" in captured.err
        monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(text).hexdigest())
        assert run(*args) == 0
        server.shutdown()
    splits = read_documents(tmp_path / "out")
    assert "".join(splits["train"] + splits["val"]) == text.decode()


def test_shakespeare_for_gpt2_is_llmcs_files(tmp_path):
    tokenizer = tokenizer_or_skip("gpt2")
    source = Path(os.environ.get("GPT2_TEST_DATA", "nowhere"), "tinyshakespeare.txt")
    if not source.exists():
        pytest.skip("GPT2_TEST_DATA names no folder with tinyshakespeare.txt")
    (tmp_path / "tiny_shakespeare.txt").write_bytes(source.read_bytes())
    assert run("shakespeare", "--format", "bin", "--out", tmp_path) == 0
    ids = []
    sections = source.read_text().split("\n\n")
    for i, section in enumerate(sections):
        ids += [50256, *tokenizer.encode(section + ("\n\n" if i < len(sections) - 1 else ""))]
    for name, expected in (("val", ids[:32768]), ("train", ids[32768:])):
        data = (tmp_path / f"tiny_shakespeare_{name}.bin").read_bytes()
        assert np.frombuffer(data[1024:], np.uint16).tolist() == expected
    assert len(ids) == 32_768 + 305_260


def test_tinystories_keeps_its_own_validation_split(tmp_path):
    stories = {"train": make_documents(60, seed=1), "validation": make_documents(20, seed=2)}
    files = {f"data/{split}-00000-of-00001.parquet": parquet_bytes(texts) for split, texts in stories.items()}
    with serve("roneneldan/TinyStories", files) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, ROOT / "prepare.py", "tinystories", "--tokenizer", "byte"]
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True, timeout=60)
    splits = read_documents(tmp_path / "data" / "tinystories_byte")
    assert splits == {"train": stories["train"], "val": stories["validation"]}


def test_inspect_tells_what_is_there_and_finds_a_flipped_byte(prepared, capsys):
    _, out, _ = prepared
    assert run("--inspect", out) == 0
    said = capsys.readouterr().out
    assert "train: 1 shard, 4,951 tokens, 1 document, 4,951.0 tokens each" in said
    assert "byte tokenizer" in said
    assert "'<|endoftext|>some text, some" in said
    assert "matches its checksums" in said
    path = out / "a_train_000001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert run("--inspect", out) == 2
    assert "a_train_000001.npy is not what was written" in capsys.readouterr().err


def test_inspect_reads_foreign_shards(tmp_path, capsys):
    for name in ("x_train.bin", "x_val.bin"):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, 3
        (tmp_path / name).write_bytes(header.tobytes() + np.array([50256, 1, 50256], "<u2").tobytes())
    assert run("--inspect", tmp_path) == 0
    said = capsys.readouterr().out
    assert "gpt2 tokenizer" in said
    assert "3 tokens, 2 documents, 1.5 tokens each" in said
    assert "made elsewhere" in said
