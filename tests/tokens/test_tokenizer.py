import os
import subprocess
import sys

import numpy as np
import pytest
from corpus import SPECIAL, make_documents, tokenizer_or_skip
from hub_server import serve

from system.errors import UserError
from tokens.tokenizer import VOCAB_SIZES, end_of_text_id, get_tokenizer, tokenizer_of_vocab


@pytest.fixture(params=VOCAB_SIZES)
def tokenizer(request):
    return tokenizer_or_skip(request.param)


def test_decode_inverts_encode(tokenizer):
    for text in make_documents(50) + list(SPECIAL):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_encode_never_returns_end_of_text(tokenizer):
    text = "a<|endoftext|>b<|endoftext|>"
    assert tokenizer.eot not in tokenizer.encode(text)
    assert tokenizer.eot not in tokenizer.encode_array(text)
    assert tokenizer.eot == tokenizer.vocab_size - 1 == end_of_text_id(tokenizer.name)


def test_encode_array_equals_encode(tokenizer):
    for text in [*make_documents(50), "half \ud83d of a pair", ""]:
        array = tokenizer.encode_array(text)
        assert array.tolist() == tokenizer.encode(text)
        assert np.issubdtype(array.dtype, np.unsignedinteger)


def test_byte_lengths_add_up_to_the_text(tokenizer):
    lengths = tokenizer.byte_lengths()
    assert (lengths.shape, lengths[tokenizer.eot]) == ((tokenizer.vocab_size,), 0)
    for text in make_documents(50) + list(SPECIAL):
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_byte_tokenizer_encodes_each_byte_as_itself():
    assert get_tokenizer("byte").encode("aé") == [97, 0xC3, 0xA9]


def test_tokenizer_of_vocab_finds_the_name():
    assert [tokenizer_of_vocab(size) for size in (50257, 257, 50304)] == ["gpt2", "byte", None]


def test_unknown_tokenizer_is_reported():
    with pytest.raises(UserError, match=r"'gpt3'.*gpt2, byte"):
        get_tokenizer("gpt3")


def test_gpt2_ids_equal_tiktokens():
    tokenizer, tiktoken = tokenizer_or_skip("gpt2"), pytest.importorskip("tiktoken")
    encoding = tiktoken.get_encoding("gpt2")
    for text in make_documents(50):
        assert tokenizer.encode(text) == encoding.encode(text, disallowed_special=())
    assert tokenizer.encode("hello world") == [31373, 995]  # from tiktoken's documentation


def test_gpt2_vocabulary_is_loaded_from_the_hub_if_tiktoken_cannot_download_it(tmp_path):
    tokenizer_or_skip("gpt2")
    import tiktoken.load

    place = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    names = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}
    files = {ours: tiktoken.load.read_file_cached(place + theirs) for ours, theirs in names.items()}
    with serve("openai-community/gpt2", files, repo_type="models") as server:
        cache = {"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"), "HF_HOME": str(tmp_path / "hf")}
        proxies = {"https_proxy": "http://127.0.0.1:9", "HF_ENDPOINT": server.url}  # nothing listens on port 9
        code = "from tokens.tokenizer import get_tokenizer; print(get_tokenizer('gpt2').encode('hello world'))"
        command, env = [sys.executable, "-c", code], os.environ | cache | proxies
        assert subprocess.check_output(command, env=env, text=True, timeout=60) == "[31373, 995]\n"
