"""Reading documents: the same texts from files, from a named source, and from shards made of them."""

import json

import numpy as np
import pytest
from corpus import make_documents, parquet_bytes, tokenizer_or_skip

from system.errors import UserError
from text import documents as documents_module
from text.encoding import tokenize_texts
from text.read import read_documents
from tokens.shards import shard_name, write_meta, write_shard
from tokens.tokenizer import get_tokenizer

TEXTS = [text for text in make_documents(30) if text]


def texts_of(*names, **options):
    return [document.text for document in read_documents([str(name) for name in names], **options)]


def test_read_documents_of_files_joins_the_pieces_of_a_document(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "PIECE_BYTES", 64)
    long = " ".join(TEXTS)
    (tmp_path / "a.txt").write_bytes(long.encode())
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", *TEXTS]))
    (tmp_path / "c.parquet").write_bytes(parquet_bytes(TEXTS, row_group_size=7))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "__init__.py").touch()
    assert texts_of(tmp_path) == [long, *TEXTS, *TEXTS]
    assert texts_of(tmp_path / "b.jsonl", tmp_path / "a.txt") == [*TEXTS, long]
    assert texts_of(tmp_path / "b.jsonl", tmp_path / "a.txt", limit=3) == TEXTS[:3]


@pytest.mark.parametrize("name", ["byte", "gpt2"])
def test_read_documents_of_shards_gives_the_texts_they_were_made_of(tmp_path, name):
    tokenizer = tokenizer_or_skip(name)
    splits = {"val": TEXTS[:10], "train": TEXTS[10:]}
    entries = [
        write_shard(tmp_path / shard_name("a", i, ".npy"), tokenize_texts(texts, tokenizer).ids)
        for i, texts in enumerate(splits.values())
    ]
    write_meta(tmp_path, {"tokenizer": name, "source": "a test", "shards": entries})
    for split, texts in splits.items():
        assert texts_of(tmp_path, split=split) == texts
    assert read_documents([str(tmp_path)])[0].source.endswith("a_val_000000.npy")


def test_read_documents_drops_a_character_that_the_end_of_a_shard_cuts(tmp_path):
    ids = [*get_tokenizer("byte").encode("aß")][:-1]
    shard = np.array([*ids, 256, *ids], np.uint16)
    entries = [write_shard(tmp_path / shard_name("a", i, ".npy"), shard) for i in range(2)]
    write_meta(tmp_path, {"tokenizer": "byte", "source": "a test", "shards": entries})
    assert texts_of(tmp_path) == ["a", "a"]


def test_read_documents_needs_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(UserError, match="no text to score; expected at least one document"):
        texts_of(tmp_path)
