"""Text to ids and back: `gpt2` (byte-pair encoding by tiktoken) and `byte` (nothing to download).

Both have one id more than text needs, end-of-text, which begins each document. Text never becomes that id, even where
it spells it out.
"""

from collections.abc import Callable
from dataclasses import dataclass

from errors import UserError

VOCAB_SIZES = {"gpt2": 50257, "byte": 257}
EOT_TEXT = b"<|endoftext|>"  # how end-of-text is shown


@dataclass(frozen=True)
class Tokenizer:
    name: str
    vocab_size: int  # ids are 0 … vocab_size - 1
    eot: int  # the end-of-text id
    encode: Callable[[str], list[int]]
    decode_bytes: Callable[[list[int]], bytes]

    def decode(self, ids):
        """Text of `ids`. A piece of a character at either end, which is no text, shows as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")


def get_tokenizer(name):
    """The tokenizer called `name`, one of `VOCAB_SIZES`. Raises `UserError` for others or a missing vocabulary."""
    if name == "byte":
        return Tokenizer("byte", VOCAB_SIZES["byte"], 256, lambda text: list(text.encode("utf-8")), decode_byte_ids)
    if name == "gpt2":
        encoding = load_gpt2_encoding()
        return Tokenizer("gpt2", VOCAB_SIZES["gpt2"], 50256, encoding.encode_ordinary, encoding.decode_bytes)
    raise UserError(f"tokenizer {name!r}: expected one of {', '.join(VOCAB_SIZES)}")


def decode_byte_ids(ids):
    return b"".join(EOT_TEXT if i == 256 else bytes((i,)) for i in ids)


def load_gpt2_encoding():
    import tiktoken  # here, so that byte runs work without it and start sooner

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests, SSL, proxies and the cache each raise their own kinds
        raise UserError(
            f"the GPT-2 vocabulary could not be loaded ({type(error).__name__}). tiktoken downloads it once: connect,"
            " or set TIKTOKEN_CACHE_DIR to a folder copied from a machine that has it, or use --tokenizer byte"
        ) from error
