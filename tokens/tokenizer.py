"""Text to token ids and back: `gpt2` (byte-pair encoding by tiktoken) and `byte` (nothing to download).

Both have one extra id, end-of-text, which precedes each document. Text is never encoded to that id, even
if it contains the characters `<|endoftext|>`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from system.errors import UserError

VOCAB_SIZES = {"gpt2": 50257, "byte": 257}
TokenizerName = Literal[tuple(VOCAB_SIZES)]  # for settings
EOT_TEXT = b"<|endoftext|>"  # what the end-of-text id decodes to


def tokenizer_of_vocab(vocab_size):
    """The name of the tokenizer with this vocabulary size, or None."""
    return next((name for name, size in VOCAB_SIZES.items() if size == vocab_size), None)


def end_of_text_id(name):
    """The end-of-text id of a tokenizer: the last id of its vocabulary."""
    return VOCAB_SIZES[name] - 1


@dataclass(frozen=True)
class Tokenizer:
    name: str
    vocab_size: int  # ids are 0 … vocab_size - 1
    eot: int  # the end-of-text id
    encode: Callable[[str], list[int]]
    encode_array: Callable[[str], np.ndarray]  # the same ids as unsigned integers, without an intermediate list
    decode_bytes: Callable[[list[int]], bytes]

    def byte_lengths(self):
        """The bytes of text that each id stands for, int64 (vocab_size,); 0 for end-of-text, which is no text."""
        lengths = np.array([len(self.decode_bytes([i])) for i in range(self.vocab_size)], dtype=np.int64)
        lengths[self.eot] = 0
        return lengths

    def decode(self, ids):
        """Text of `ids`. Incomplete UTF-8 at either end shows as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def get_tokenizer(name):
    """The tokenizer called `name`. Raises `UserError` for an unknown name or if its vocabulary cannot be loaded."""
    if name == "byte":
        encode, encode_array, decode_bytes = encode_bytes, encode_byte_array, decode_byte_ids
    elif name == "gpt2":
        encoding = load_gpt2_encoding()
        encode, decode_bytes = encoding.encode_ordinary, encoding.decode_bytes
        encode_array = functools.partial(encode_gpt2_array, encoding)
    else:
        raise UserError(f"tokenizer {name!r}: expected one of {', '.join(VOCAB_SIZES)}")
    return Tokenizer(name, VOCAB_SIZES[name], end_of_text_id(name), encode, encode_array, decode_bytes)


def encode_bytes(text):
    return list(replace_surrogates(text).encode())


def encode_byte_array(text):
    return np.frombuffer(replace_surrogates(text).encode(), dtype=np.uint8)


def decode_byte_ids(ids):
    eot = end_of_text_id("byte")
    return b"".join(EOT_TEXT if i == eot else bytes((i,)) for i in ids)


def encode_gpt2_array(encoding, text):
    """The ids of `encode_ordinary` as an array: no special token is allowed, and none is an error."""
    return encoding.encode_to_numpy(replace_surrogates(text), allowed_special=frozenset(), disallowed_special=())


def replace_surrogates(text):
    """`text` with each unpaired surrogate (JSON can contain them) replaced by U+FFFD, as tiktoken does."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def load_gpt2_encoding():
    import tiktoken  # not needed by the byte tokenizer

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests, SSL, proxies and the cache each have their own errors
        try:
            return load_gpt2_encoding_from_hub()
        except Exception as second:  # so do the hub's libraries
            raise UserError(
                f"the GPT-2 vocabulary could not be loaded, by tiktoken ({type(error).__name__}) or from the Hugging"
                f" Face hub ({type(second).__name__}). It is downloaded once: connect, or set HF_ENDPOINT to a mirror,"
                " or TIKTOKEN_CACHE_DIR to a folder copied from a machine that has it, or use --tokenizer byte"
            ) from error


def load_gpt2_encoding_from_hub():
    """The same encoding, built from the same two files on the hub (its mirror, or its cache)."""
    import tiktoken
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str

    def find(**options):
        return [hf_hub_download("openai-community/gpt2", name, **options) for name in ("merges.txt", "vocab.json")]

    try:
        merges, vocabulary = find(local_files_only=True)
    except LocalEntryNotFoundError:
        get_session().head(constants.ENDPOINT, timeout=10)  # fails at once without a network; `find` takes 30 s
        merges, vocabulary = find()
    ranks = data_gym_to_mergeable_bpe_ranks(merges, vocabulary)  # verifies that both files agree
    special = {EOT_TEXT.decode(): end_of_text_id("gpt2")}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
