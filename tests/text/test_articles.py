"""WikiText's lines joined into articles, however they are divided into pieces."""

import pytest
from corpus import LoadedTexts

from text.articles import join_articles
from text.encoding import tokenize_texts
from tokens.tokenizer import get_tokenizer

ARTICLES = [
    [" = Robert = \n", " Robert acts . \n", " = = Career = = \n", " In 2000 . \n"],
    [" = Du Fu = \n", " x = y = z \n", " = = = Poems = = = \n", " Many . \n"],
    [" = Short = \n"],
]
LINES = [line for article in ARTICLES for line in article]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_join_articles_gives_the_same_tokens_for_any_pieces(rows):
    pieces = [(LoadedTexts(LINES[i : i + rows]), 0.1) for i in range(0, len(LINES), rows)]
    tokenizer = get_tokenizer("byte")
    parts = [tokenize_texts(piece.texts(), tokenizer, piece.continues) for piece, _ in join_articles(iter(pieces))]
    expected = tokenize_texts(["".join(article) for article in ARTICLES], tokenizer)
    assert [i for part in parts for i in part.ids.tolist()] == expected.ids.tolist()
    assert sum(part.documents for part in parts) == 3
