"""Text to ids and back: `gpt2` (byte-pair encoding by tiktoken) and `byte` (nothing to download).

Both have one id more than text needs, end-of-text, which begins each document. Text never becomes that id, even where
it spells it out.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from system.errors import UserError

VOCAB_SIZES = {"gpt2": 50257, "byte": 257}
EOT_TEXT = b"<|endoftext|>"  # how end-of-text is shown


@dataclass(frozen=True)
class Tokenizer:
    name: str
    vocab_size: int  # ids are 0 … vocab_size - 1
    eot: int  # the end-of-text id
    encode: Callable[[str], list[int]]
    encode_array: Callable[[str], np.ndarray]  # the same ids, unsigned integers, with no Python list on the way
    decode_bytes: Callable[[list[int]], bytes]

    def decode(self, ids):
        """Text of `ids`. A piece of a character at either end, which is no text, shows as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def get_tokenizer(name):
    """The tokenizer called `name`, one of `VOCAB_SIZES`. Raises `UserError` for others or a missing vocabulary."""
    size = VOCAB_SIZES.get(name)
    if name == "byte":
        return Tokenizer("byte", size, 256, lambda text: list(whole(text).encode()), encode_byte_array, decode_byte_ids)
    if name == "gpt2":
        encoding = load_gpt2_encoding()
        to_array = functools.partial(encode_gpt2_array, encoding)
        return Tokenizer("gpt2", size, 50256, encoding.encode_ordinary, to_array, encoding.decode_bytes)
    raise UserError(f"tokenizer {name!r}: expected one of {', '.join(VOCAB_SIZES)}")


def decode_byte_ids(ids):
    return b"".join(EOT_TEXT if i == 256 else bytes((i,)) for i in ids)


def encode_byte_array(text):
    return np.frombuffer(whole(text).encode(), dtype=np.uint8)


def encode_gpt2_array(encoding, text):
    """What `encode_ordinary` gives. With no special token allowed or forbidden, all text is ordinary text."""
    return encoding.encode_to_numpy(whole(text), allowed_special=frozenset(), disallowed_special=())


def whole(text):
    """`text` with each half of a surrogate pair (JSON can spell one) replaced by U+FFFD, as tiktoken does."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def load_gpt2_encoding():
    import tiktoken  # here, so that byte runs work without it and start sooner

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests, SSL, proxies and the cache each raise their own kinds
        try:
            return load_gpt2_encoding_from_hub()
        except Exception as second:  # as do the hub's libraries
            raise UserError(
                f"the GPT-2 vocabulary could not be loaded, by tiktoken ({type(error).__name__}) or from the Hugging"
                f" Face hub ({type(second).__name__}). It is downloaded once: connect, or set HF_ENDPOINT to a mirror,"
                " or TIKTOKEN_CACHE_DIR to a folder copied from a machine that has it, or use --tokenizer byte"
            ) from error


def load_gpt2_encoding_from_hub():
    """The same encoding, of the same two files as the hub (or its mirror, or its cache) has them."""
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
        get_session().head(
            constants.ENDPOINT, timeout=10
        )  # out of reach, it says so now; `find` tries for half a minute
        merges, vocabulary = find()
    ranks = data_gym_to_mergeable_bpe_ranks(merges, vocabulary)  # checks that the two agree
    special = {EOT_TEXT.decode(): 50256}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)
