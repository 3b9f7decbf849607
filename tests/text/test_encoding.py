import numpy as np
from corpus import LoadedTexts, cut, jsonl_bytes, make_documents, tokenizer_or_skip

from text.encoding import count_characters, estimate_tokens, tokenize


def test_tokenize_encodes_each_document_after_end_of_text(tmp_path):
    tokenizer = tokenizer_or_skip("gpt2")
    texts = make_documents(100)
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(texts))
    ids = [tokenize(piece, "gpt2").ids for piece, _ in cut(tmp_path / "a.jsonl")]
    assert np.concatenate(ids).tolist() == [i for text in texts for i in [50256, *tokenizer.encode(text)]]


def test_tokenize_counts_documents_and_bytes():
    for continues, ids, documents in ((False, [256, 195, 169, 256, 98], 2), (True, [195, 169, 256, 98], 1)):
        piece = LoadedTexts(["é", "b"], continues)
        tokens = tokenize(piece, "byte")
        assert tokens.ids.tolist() == ids
        assert (tokens.documents, tokens.bytes) == (documents, 3)
        assert count_characters(piece) == 2


def test_estimate_tokens_reads_a_tenth_of_the_texts_and_skips_empty_ones():
    assert estimate_tokens(LoadedTexts(["", "ab"] * 20), "byte") == 20 * 3
    assert estimate_tokens(LoadedTexts(["", ""]), "byte") == 0
