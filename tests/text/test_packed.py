"""Compressed text: the same documents as unpacked, and one line for each archive that cannot be read."""

import bz2
import gzip
import itertools
import lzma

import numpy as np
import pytest
from corpus import cut, jsonl_bytes, make_documents

from system.errors import UserError
from text import documents, packed
from text.encoding import tokenize
from tokens.tokenizer import get_tokenizer

PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
TEXTS = make_documents(150)


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_hold_the_documents_of_unpacked_ones(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(documents, "PIECE_BYTES", 500)
    monkeypatch.setattr(packed, "BLOCK_BYTES", 300)
    lines, text = tmp_path / f"a.jsonl.{suffix}", tmp_path / f"a.txt.{suffix}"
    lines.write_bytes(PACK[suffix](jsonl_bytes(TEXTS[:70])) + PACK[suffix](jsonl_bytes(TEXTS[70:])))  # two members
    text.write_bytes(PACK[suffix]("".join(TEXTS).encode()))
    for edges in ([0, 1], [0, 0.1, 0.5, 0.501, 1]):
        pieces = [item for start, stop in itertools.pairwise(edges) for item in cut(lines, start, stop)]
        assert len(pieces) > 30
        assert [found for piece, _ in pieces for found in piece.texts()] == [t for t in TEXTS if t]
        assert sum(share for _, share in pieces) == pytest.approx(1)
    pieces = [piece for piece, _ in cut(text)]
    assert len(pieces) > 30
    ids = np.concatenate([tokenize(piece, "byte").ids for piece in pieces])
    tokenizer = get_tokenizer("byte")
    assert ids.tolist() == [tokenizer.eot, *tokenizer.encode("".join(TEXTS))]
    assert documents.find_files(str(tmp_path)) == [str(lines), str(text)]


def test_packed_file_is_read_again_when_it_has_changed(tmp_path):
    path = tmp_path / "a.txt.gz"
    for text in ("first", "the second"):
        path.unlink(missing_ok=True)  # as a download does: the name gets another file
        path.write_bytes(gzip.compress(text.encode()))
        assert [piece.texts() for piece, _ in cut(path)] == [[text]]


def flipped(data):
    return data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]


WHOLE = gzip.compress(b"some words " * 1000)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt.gz", gzip.compress(b""), "a.txt.gz is empty; leave it out"),
        ("a.txt.gz", b"plain text", "a.txt.gz is damaged or not a whole .gz file"),
        ("a.txt.gz", WHOLE[:-20], "a.txt.gz is damaged or not a whole .gz file"),
        ("a.txt.gz", flipped(WHOLE), "a.txt.gz is damaged or not a whole .gz file .*CRC"),
        ("a.txt.bz2", b"BZh9 no more", r"a.txt.bz2: .*expected a whole .bz2 file|a.txt.bz2 is damaged"),
        ("a.txt.xz", lzma.compress(b"some words " * 1000)[:-9], "a.txt.xz is damaged or not a whole .xz file"),
        ("a.txt.xz", lzma.compress(b"words", preset=9), "a.txt.xz is damaged or not .*Memory usage limit"),
        ("a.txt.gz", gzip.compress(b"0" * 5000), "a.txt.gz unpacks to 4,000 bytes without an end of line or word"),
        ("a.jsonl.gz", gzip.compress(b"a " * 3000), "a.jsonl.gz unpacks to 4,000 bytes without an end of line"),
        ("a.jsonl.gz", gzip.compress(b'{"txt": 1}'), "a.jsonl.gz, line 1: expected JSON like"),
        ("a.txt.gz", gzip.compress(b"caf\xe9"), r"a.txt.gz is not UTF-8 text \(byte 3\)"),
        ("a.jsonl.zst", b"(\xb5/\xfd", r"a\.jsonl\.zst: \.zst is not read, only \.gz, \.bz2, \.xz"),
    ],
)
def test_packed_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, name, content, reason):
    monkeypatch.setattr(packed, "LARGEST_PIECE", 4000)
    monkeypatch.setattr(packed, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(packed, "XZ_MEMORY", 10 << 20)  # enough for the usual preset, not for 9
    monkeypatch.setattr(documents, "PIECE_BYTES", 1000)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        [piece.texts() for piece, _ in cut(tmp_path / name)]
    assert "\n" not in str(caught.value)
