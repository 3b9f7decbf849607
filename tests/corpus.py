"""Documents for tests, hard on tokenizers: the same for the same seed, in FineWeb's columns."""

import io
import json
import random

import pyarrow
import pyarrow.parquet

LATIN = ("the", "a", "model", "learns", "it's", "we'll", "I'd", "1", "42", "2024", "Über", "naïve", ".", ",", "!")
WORDS = (*LATIN, "模型", "日本", "данные", "😀", "👩\u200d🚀")
NASTY = ("<|endoftext|>", "\x00\x07\x1f", "\n\n\n", "   ", "\r\n", "\t\t", "\u3000\u3000", "。\n", "é́", "")


def make_documents(count, seed=0, words=60):
    rng = random.Random(seed)

    def document():
        parts = [" ".join(rng.choices(WORDS, k=rng.randint(1, words))) + rng.choice(NASTY) for _ in range(3)]
        return rng.choice(NASTY) + "".join(parts)

    return [document() for _ in range(count)]


def parquet_bytes(texts, row_group_size=50):
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


def split_documents(ids, tokenizer):
    """The texts between end-of-text ids."""
    documents = []
    for i in ids:
        if i == tokenizer.eot:
            documents.append([])
        else:
            documents[-1].append(i)
    return [tokenizer.decode_bytes(document).decode() for document in documents]
