"""Texts → token ids: what a worker process does with a piece.

The usual way, a process pool's `imap` over documents, has half the speed: it sends every text to a worker and a list
of ids back. Here a worker receives the description of a piece, reads the text itself, and returns one array.
This module must not import torch, which would multiply the start time and the memory of the workers.
"""

import functools
from typing import NamedTuple

import numpy as np

from tokens.tokenizer import get_tokenizer


class Tokens(NamedTuple):
    ids: np.ndarray  # uint16 (n,)
    documents: int  # that begin here
    bytes: int  # of text


get_tokenizer_once = functools.cache(get_tokenizer)  # loaded once per process


def tokenize(piece, tokenizer_name):
    """The `Tokens` of a `documents.Piece`."""
    return tokenize_texts(piece.texts(), get_tokenizer_once(tokenizer_name), piece.continues)


def tokenize_texts(texts, tokenizer, continues=False):
    """The `Tokens` of documents. The end-of-text id precedes each, except the first if it `continues` a document."""
    eot = np.array([tokenizer.eot], dtype=np.uint16)
    arrays = [np.empty(0, np.uint16)]
    for i, text in enumerate(texts):
        if i > 0 or not continues:
            arrays.append(eot)
        arrays.append(tokenizer.encode_array(text))
    documents = len(texts) - (1 if texts and continues else 0)
    size = sum(len(text.encode(errors="replace")) for text in texts)
    return Tokens(np.concatenate(arrays).astype(np.uint16), documents, size)


def count_characters(piece):
    return sum(map(len, piece.texts()))


def estimate_tokens(piece, tokenizer_name):
    """About how many tokens a piece holds, from the first tenth of its texts."""
    texts = [text for text in piece.texts() if text]
    sample = texts[: max(1, len(texts) // 10)]
    if not sample:
        return 0
    tokens = len(tokenize_texts(sample, get_tokenizer_once(tokenizer_name)).ids)
    return tokens * sum(map(len, texts)) / sum(map(len, sample))
