"""Text samples: whole characters, no control characters, and no effect on training."""

import torch

from inference.text_samples import TextDecoder, sample_texts
from model import GPT, GPTConfig
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
CPU = Runtime(torch.device("cpu"), torch.float32)


def test_text_decoder_emits_whole_characters():
    text = "naïve 😀 日本"
    decoder = TextDecoder(BYTE)
    pieces = [decoder.add([byte]) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
    assert TextDecoder(BYTE).add("é".encode()[:1]) == "", "an incomplete character at the end is not shown"


def test_text_decoder_replaces_control_characters_and_invalid_bytes():
    assert TextDecoder(BYTE).add(b"a\x1b[2Jb\r\x07\x7f\tc\n") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\tc\n"
    assert TextDecoder(BYTE).add(b"a\xff\xfeb") == "a\ufffd\ufffdb"


def test_sample_texts_leaves_training_state_unchanged_and_accepts_a_compiled_model():
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=2, n_head=2, n_embd=16)).train()
    state = torch.get_rng_state()
    expected = sample_texts(gpt, BYTE, CPU, "ab", num_samples=2, max_new_tokens=8)
    compiled = torch.compile(gpt, backend="eager")
    assert sample_texts(compiled, BYTE, CPU, "ab", num_samples=2, max_new_tokens=8) == expected
    assert all(text.startswith("ab") for text in expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert gpt.training
