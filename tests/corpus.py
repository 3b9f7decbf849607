"""Documents for tests, difficult for tokenizers and reproducible by seed, and readers of what was made of them."""

import io
import json
import random
from dataclasses import dataclass

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from system.errors import UserError
from text.documents import cut_file, describe_file
from tokens.shards import open_data
from tokens.tokenizer import get_tokenizer

LATIN = ("the", "a", "model", "learns", "it's", "we'll", "I'd", "1", "42", "2024", "Über", "naïve", ".", ",", "!")
WORDS = (*LATIN, "模型", "日本", "данные", "😀", "👩\u200d🚀")
SPECIAL = ("<|endoftext|>", "\x00\x07\x1f", "\n\n\n", "   ", "\r\n", "\t\t", "\u3000\u3000", "。\n", "é́", "")


def make_documents(count, seed=0, words=60):
    rng = random.Random(seed)

    def document():
        parts = [" ".join(rng.choices(WORDS, k=rng.randint(1, words))) + rng.choice(SPECIAL) for _ in range(3)]
        return rng.choice(SPECIAL) + "".join(parts)

    return [document() for _ in range(count)]


def parquet_bytes(texts, row_group_size=50):
    """A .parquet file with FineWeb's columns."""
    columns = {
        "text": texts,
        "id": [f"<urn:uuid:{i}>" for i in range(len(texts))],
        "dump": ["CC-MAIN-2024-10"] * len(texts),
        "url": ["https://example.org/"] * len(texts),
        "language_score": [0.9] * len(texts),
        "token_count": [len(text) // 4 for text in texts],
        "score": [3.1] * len(texts),
        "int_score": [3] * len(texts),
    }
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def jsonl_bytes(texts):
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(texts)).encode()


FILE_BYTES = {"jsonl": jsonl_bytes, "parquet": parquet_bytes}


@dataclass(frozen=True)
class LoadedTexts:
    """A piece whose texts are in memory."""

    loaded: list[str]
    continues: bool = False

    def texts(self):
        return self.loaded


def cut(path, start=0.0, stop=1.0, **options):
    """The (piece, fraction) of a file, whose footer is read in this process."""
    return list(cut_file(describe_file(str(path), **options), start, stop))


def split_documents(ids, tokenizer):
    """The texts between end-of-text ids."""
    documents = []
    for i in ids:
        if i == tokenizer.eot:
            documents.append([])
        else:
            documents[-1].append(i)
    return [tokenizer.decode_bytes(document).decode() for document in documents]


def read_documents(folder):
    """The texts of each split of a folder of shards: {"train": [...], "val": [...]}."""
    data = open_data(folder, "make")
    tokenizer = get_tokenizer(data.tokenizer)
    ids = {split: np.concatenate(shards).tolist() for split, shards in data.splits.items()}
    return {split: split_documents(ids, tokenizer) for split, ids in ids.items()}


def tokenizer_or_skip(name):
    """A tokenizer; skips the test if its vocabulary cannot be loaded."""
    try:
        return get_tokenizer(name)
    except UserError as error:
        pytest.skip(str(error))
