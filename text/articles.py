"""WikiText: its rows are lines, and the lines from one title to the next are an article."""

import re
from dataclasses import dataclass

from text.documents import Piece

TITLE = re.compile(r" = [^=].* = \n?")  # " = Title = "; a section is " = = Title = = "


@dataclass(frozen=True)
class Articles:
    """A piece of lines, whose texts are articles: the line with the title and all lines up to the next title.

    Lines are unchanged; empty ones, which separate paragraphs, are dropped as in every source. A piece that `continues`
    has a first text without a title, the rest of the article before; it is empty if the piece begins with a title.
    """

    piece: Piece
    continues: bool

    def __str__(self):
        return str(self.piece)

    @property
    def path(self):
        return self.piece.path

    def texts(self):
        articles = [[]] if self.continues else []
        for line in self.piece.texts():
            if TITLE.fullmatch(line) or not articles:
                articles.append([])
            articles[-1].append(line)
        return ["".join(lines) for lines in articles]


def join_articles(pieces):
    """(`Piece` of lines, share) → (`Articles`, share), of all pieces of a split in order."""
    for number, (piece, share) in enumerate(pieces):
        yield Articles(piece, continues=number > 0), share
