import os
import subprocess
import sys

import numpy as np
import pytest
from corpus import NASTY, make_documents
from hub_server import serve

from system.errors import UserError
from tokens.tokenizer import VOCAB_SIZES, get_tokenizer


@pytest.fixture(params=VOCAB_SIZES)
def tokenizer(request):
    try:
        return get_tokenizer(request.param)
    except UserError as error:
        pytest.skip(str(error))


def test_text_comes_back_byte_for_byte(tokenizer):
    for text in make_documents(50) + list(NASTY):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_text_never_becomes_end_of_text(tokenizer):
    text = "a<|endoftext|>b<|endoftext|>"
    assert tokenizer.eot not in tokenizer.encode(text)
    assert tokenizer.eot not in tokenizer.encode_array(text)
    assert tokenizer.eot == tokenizer.vocab_size - 1


def test_array_and_list_hold_the_same_ids(tokenizer):
    for text in [*make_documents(50), "half \ud83d of a pair", ""]:
        array = tokenizer.encode_array(text)
        assert array.tolist() == tokenizer.encode(text)
        assert np.issubdtype(array.dtype, np.unsignedinteger)


def test_a_byte_is_its_own_id():
    assert get_tokenizer("byte").encode("aé") == [97, 0xC3, 0xA9]


def test_unknown_tokenizer_is_named():
    with pytest.raises(UserError, match=r"'gpt3'.*gpt2, byte"):
        get_tokenizer("gpt3")


def test_gpt2_ids_are_tiktokens():
    tokenizer, tiktoken = gpt2_or_skip()
    encoding = tiktoken.get_encoding("gpt2")
    for text in make_documents(50):
        assert tokenizer.encode(text) == encoding.encode(text, disallowed_special=())
    assert tokenizer.encode("hello world") == [31373, 995]  # as in tiktoken's documentation


def test_vocabulary_comes_from_the_hub_where_tiktokens_own_place_is_out_of_reach(tmp_path):
    _, tiktoken = gpt2_or_skip()
    place = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
    names = {"merges.txt": "vocab.bpe", "vocab.json": "encoder.json"}
    files = {ours: tiktoken.load.read_file_cached(place + theirs) for ours, theirs in names.items()}
    with serve("openai-community/gpt2", files, repo_type="models") as server:
        cache = {"TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"), "HF_HOME": str(tmp_path / "hf")}
        proxies = {"https_proxy": "http://127.0.0.1:9", "HF_ENDPOINT": server.url}  # nothing listens there
        code = "from tokens.tokenizer import get_tokenizer; print(get_tokenizer('gpt2').encode('hello world'))"
        command, env = [sys.executable, "-c", code], os.environ | cache | proxies
        assert subprocess.check_output(command, env=env, text=True, timeout=60) == "[31373, 995]\n"


def gpt2_or_skip():
    try:
        tokenizer = get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(str(error))
    import tiktoken.load

    return tokenizer, tiktoken
