import itertools
from pathlib import Path

import numpy as np
import pytest
from corpus import FILE_BYTES, jsonl_bytes, make_documents, parquet_bytes, tokenizer_or_skip

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
    pieces = [piece for piece, _ in documents.cut_file(str(path))]
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
        pieces = [item for start, stop in parts for item in documents.cut_file(path, start, stop)]
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


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"caf\xe9 " * 100, r"a.txt is not UTF-8 text \(byte 3\)"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "a.jsonl, line 2: expected JSON like"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "a.jsonl, line 2: expected JSON like"),
        ("a.parquet", b"PAR1 no more", "a.parquet is not a whole parquet file"),
        ("a.parquet", parquet_bytes(["a"]).replace(b"text", b"test"), "a.parquet has no column 'text'; it has test"),
    ],
)
def test_damaged_file_is_reported(tmp_path, name, content, reason):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        [piece.texts() for piece, _ in documents.cut_file(str(path))]
    assert "\n" not in str(caught.value)


def test_fingerprint_changes_when_a_file_is_edited(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl_bytes(["a"]))
    before = documents.fingerprint([str(path)])
    assert documents.fingerprint([str(path)]) == before
    path.write_bytes(jsonl_bytes(["ab"]))
    assert documents.fingerprint([str(path)]) != before
