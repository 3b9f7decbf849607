"""Text → tokens → shards: worker processes, kept in order.

What one worker makes and what sixty make is the same, byte for byte: pieces are tokenized anywhere and joined in order.
A process pool's `imap` over documents is the usual way, at half the speed: it hands every text to a worker and a list
of ids back. Here a worker gets a piece's description, reads the text itself, and returns one array.
"""

import functools
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from text.shard_writer import ShardWriter, finish
from text.workers import in_order
from tokens.tokenizer import get_tokenizer


class Item(NamedTuple):
    """A piece of text on its way to the shards."""

    position: list  # where it stands in the stream; what a restart begins from
    split: str | None  # None: the first shard is validation, the others training
    share: float  # of all the work
    piece: object  # has `texts()` and `continues`, see documents.py


class Tokens(NamedTuple):
    ids: np.ndarray  # uint16 (n,)
    documents: int
    bytes: int  # of text


def make_shards(progress, items, workers, name, again=None):
    """Tokenize `items` (from `progress.position` on) into shards, then write `meta.json`. Returns it."""
    writer = ShardWriter(progress, name)
    function = functools.partial(tokenize, tokenizer_name=progress.request["tokenizer"])
    with tqdm(unit="tok", unit_scale=True, desc="tokenizing", initial=writer.tokens(), smoothing=0.05) as bar:
        for item, tokens in in_order(function, items, workers, again):
            writer.add(item, tokens)
            bar.total = max(writer.expected_tokens(), writer.tokens())
            bar.update(writer.tokens() - bar.n)
    writer.close()
    return finish(progress)


def tokenize(piece, tokenizer_name):
    return tokenize_texts(piece.texts(), tokenizer_here(tokenizer_name), piece.continues)


def tokenize_texts(texts, tokenizer, continues=False):
    """The tokens of documents, end-of-text before each (not before the first where it `continues` another's text)."""
    eot = np.array([tokenizer.eot], dtype=np.uint16)
    arrays = [np.empty(0, np.uint16)]
    for i, text in enumerate(texts):
        if i > 0 or not continues:
            arrays.append(eot)
        arrays.append(tokenizer.encode_array(text))
    documents = len(texts) - (1 if texts and continues else 0)
    size = sum(len(text.encode(errors="replace")) for text in texts)
    return Tokens(np.concatenate(arrays).astype(np.uint16), documents, size)


tokenizer_here = functools.cache(get_tokenizer)  # loaded once a process


def count_characters(piece):
    return sum(map(len, piece.texts()))
