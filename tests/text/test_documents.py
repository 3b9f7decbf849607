import io
import itertools
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from corpus import FILE_BYTES, LoadedTexts, cut, jsonl_bytes, make_documents, parquet_bytes, tokenizer_or_skip

from system.errors import UserError
from text import documents
from text.encoding import tokenize


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_cut_file_changes_no_token_of_a_long_text(tmp_path, monkeypatch, name):
    tokenizer = tokenizer_or_skip(name)
    text = "".join(make_documents(300, seed=3))
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    monkeypatch.setattr(documents, "PIECE_BYTES", 50)
    pieces = [piece for piece, _ in cut(path)]
    assert len(pieces) > 100
    ids = np.concatenate([tokenize(piece, name).ids for piece in pieces])
    assert ids.tolist() == [tokenizer.eot, *tokenizer.encode(text)]


@pytest.mark.parametrize("kind", FILE_BYTES)
def test_cut_file_parts_share_no_document_and_lose_none(tmp_path, monkeypatch, kind):
    texts = make_documents(150)
    path = str(tmp_path / f"a.{kind}")
    Path(path).write_bytes(FILE_BYTES[kind](texts))
    monkeypatch.setattr(documents, "PIECE_BYTES", 500)  # row groups then count as large
    for edges in ([0, 1], [0, 0.1, 0.5, 0.501, 1], [0, 1 / 3, 2 / 3, 1]):
        parts = itertools.pairwise(edges)
        pieces = [item for start, stop in parts for item in cut(path, start, stop)]
        assert [text for piece, _ in pieces for text in piece.texts()] == texts
        assert sum(share for _, share in pieces) == pytest.approx(1)


def test_find_files_sorts_and_skips_hidden_and_other_files(tmp_path):
    for name in ("b/x.md", "a.txt", "b/a.py", ".git/x.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    expected = [str(tmp_path / name) for name in ("a.txt", "b/a.py", "b/x.md")]
    assert documents.find_files(str(tmp_path)) == expected
    assert documents.find_files(f"{tmp_path}/b/*") == expected[1:]
    with pytest.raises(UserError, match=r"a\.csv: no such file or folder"):
        documents.find_files(str(tmp_path / "a.csv"))


def table_bytes(values, kind, columns=1):
    """A .parquet file with columns called "text"."""
    buffer = io.BytesIO()
    table = pyarrow.Table.from_arrays([pyarrow.array(values, kind)] * columns, names=["text"] * columns)
    pyarrow.parquet.write_table(table, buffer, compression="none", use_dictionary=False)
    return buffer.getvalue()


def invalid_utf8():
    return table_bytes(["coffee" * 9], pyarrow.string()).replace(b"coffee", b"caf\xe9 \xe9")


def damaged_page():
    data = bytearray(parquet_bytes(make_documents(200)))
    data[4:200] = b"\xff" * 196
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"caf\xe9 " * 100, r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "a.jsonl, line 2: expected JSON like"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "a.jsonl, line 2: expected JSON like"),
        ("a.jsonl", b'{"text": 7}', "a.jsonl, line 1: expected JSON like"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1: expected JSON like"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl is not UTF-8 text"),
        ("a.parquet", b"PAR1 no more", "a.parquet is damaged or not a whole parquet file"),
        ("a.parquet", parquet_bytes(["a"]).replace(b"text", b"test"), "a.parquet has no column 'text'; it has test"),
        ("a.parquet", damaged_page(), "a.parquet.*download it again"),
        (
            "a.parquet",
            table_bytes([b"caf\xe9"], pyarrow.binary()),
            "column 'text' holds bin",
        ),
        ("a.parquet", table_bytes([7], pyarrow.int64()), "column 'text' holds int64, expected text"),
        ("a.parquet", table_bytes([["a"]], pyarrow.list_(pyarrow.string())), "column 'text' holds list"),
        ("a.parquet", table_bytes(["a"], pyarrow.string(), columns=2), "has 2 columns called 'text'"),
        ("a.parquet", invalid_utf8(), "a.parquet is damaged or not .* UTF-8 text"),
    ],
)
def test_damaged_file_is_reported(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        [piece.texts() for piece, _ in cut(path)]
    assert "\n" not in str(caught.value)


def test_fingerprint_changes_when_a_file_is_edited(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_bytes(["a"]))
    before = documents.fingerprint([str(path)])
    assert documents.fingerprint([str(path)]) == before
    path.write_bytes(jsonl_bytes(["ab"]))
    assert documents.fingerprint([str(path)]) != before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
def test_find_files_refuses_a_pipe_which_would_block(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is a pipe"):
        documents.find_files(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("kind", FILE_BYTES)
def test_describe_file_takes_the_text_from_another_field(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(FILE_BYTES[kind](["one", "two"]).replace(b"text", b"body"))
    assert [text for piece, _ in cut(path, field="body") for text in piece.texts()] == ["one", "two"]


@pytest.mark.parametrize("values", [[None, "a", None], pyarrow.array(["a", "b", "a"]).dictionary_encode()])
def test_cut_file_reads_nulls_and_dictionaries(tmp_path, values):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    expected = (
        [text for text in pyarrow.array(values).to_pylist() if text] if isinstance(values, list) else ["a", "b", "a"]
    )
    assert [text for piece, _ in cut(path) for text in piece.texts()] == expected


def test_rows_of_a_large_group_are_read_in_any_order(tmp_path, monkeypatch):
    texts = make_documents(100)
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(texts, row_group_size=100))
    monkeypatch.setattr(documents, "PIECE_BYTES", 500)
    pieces = [piece for piece, _ in cut(tmp_path / "a.parquet")]
    assert len(pieces) > 10
    assert all(piece.batch_rows for piece in pieces)
    for order in (pieces, pieces[::-1], pieces[::3]):
        assert [piece.texts() for piece in order] == [[t for t in texts[p.start : p.stop] if t] for p in order]


def test_describe_files_reads_parquet_in_a_worker_process(tmp_path):
    (tmp_path / "a.parquet").write_bytes(parquet_bytes(["a"] * 3))
    (file,) = documents.describe_files([str(tmp_path / "a.parquet")])
    assert file.groups == ((3, file.groups[0][1]),)


@pytest.mark.parametrize(
    ("cut_at", "head", "tail"), [(0, [], ["ab", "cd"]), (3, ["ab", "c"], ["d"]), (4, ["ab", "cd"], [])]
)
def test_half_piece_cuts_the_text_that_spans_the_character(cut_at, head, tail):
    halves = [documents.HalfPiece(LoadedTexts(["ab", "cd"], True), cut_at, after) for after in (False, True)]
    assert [half.texts() for half in halves] == [head, tail]
    assert [half.continues for half in halves] == [True, False]
