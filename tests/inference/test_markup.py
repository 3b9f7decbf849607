"""HTML: text is escaped and kept whole, colours follow the numbers, and images hold the weights."""

import base64
import html
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from inference import markup
from inference.explorer import View
from inference.inspection import ScoredToken, Span
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
HOSTILE = "<img src=x onerror=alert(1)> & \"'\n\té漢\x1b"


def tokens_of(text):
    return tuple(ScoredToken(i, float(n % 3)) for n, i in enumerate(text.encode()))


def texts(page):
    """The texts of all elements that can be chosen."""
    return [html.unescape(text) for text in re.findall(r'<span data-i="\d+"[^>]*>([^<]*)</span>', page)]


def strength(style):
    return float(re.search(r"/ ([\d.]+)\)", style)[1])


def test_view_html_shows_every_token_as_text():
    page = markup.view_html(View(tokens_of(HOSTILE), 3), BYTE, 100)
    *shown, following = texts(page)
    expected = HOSTILE
    assert "<img" not in page
    assert following == ""
    for text, sign in {"\n": "↵\n", "é": "·é", "漢": "··漢", "\x1b": "\ufffd"}.items():
        expected = expected.replace(text, sign)
    assert "".join(shown) == expected
    assert page.count("typed") == 3


def test_view_html_names_surprisal_mean_and_room():
    view = View((ScoredToken(97, None), ScoredToken(98, math.log(2)), ScoredToken(99, math.log(4000))), 1, chosen=1)
    page = markup.view_html(view, BYTE, 3)
    assert "the first token: nothing precedes it" in page
    assert "0.69 nats, probability 50.0%" in page
    assert "8.29 nats, probability 0.025%" in page
    assert page.count("chosen") == 1
    assert f"3 of 3 tokens, {math.log(8000) / 2:.2f} nats each" in page
    assert "the next token" not in page  # the context is full


def test_tint_grows_with_the_surprisal_up_to_one_in_a_thousand():
    assert [strength(markup.tint(markup.SURPRISE, share)) for share in (-1, 0, 0.5, 1, 9)] == [0, 0, 0.4, 0.8, 0.8]


def test_options_html_lists_alternatives_with_signs_for_white_space():
    view = View(tokens_of("a <"), 1, chosen=2, options=((ord(" "), 0.5), (0xE6, 0.25), (ord("<"), 0.0)))
    page = markup.options_html(view, BYTE)
    assert re.findall(r'data-i="(\d)"[^>]*>([^<]*)<span class="percent">([^<]*)', page) == [
        ("0", "␣", "50.0%"),
        ("1", "⟨E6⟩", "25.0%"),
        ("2", "&lt;", "under 0.001%"),
    ]
    assert "<b>&lt;</b>: 2.00 nats, 13.5%" in page
    assert "next tokens" in markup.options_html(View(view.tokens, 1, chosen=3, options=view.options), BYTE)
    assert markup.options_html(View(), BYTE) == ""


def test_heads_html_has_an_image_of_each_head():
    maps = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    page = markup.heads_html(maps)
    assert re.findall(r'data-i="(\d+)" title="([^"]*)"', page)[4] == ("4", "layer 1, head 1")
    image = Image.open(io.BytesIO(base64.b64decode(re.findall(r"base64,([^\"]*)", page)[4])))
    alpha = torch.from_numpy(np.array(image.getchannel("A"))) / 255
    torch.testing.assert_close(alpha**2, maps[1, 1], atol=0.01, rtol=0)


def test_attention_html_shows_the_row_of_the_chosen_token():
    maps = torch.zeros(2, 3, 3, 3)
    maps[1, 2, 1] = torch.tensor([0.75, 0.25, 0])
    page = markup.attention_html([97, 98, 10], maps, 5, 1, BYTE)
    assert "<b>Layer 1, head 2</b>: token 1 attends to <b>a</b> (token 0) 75%, <b>b</b> (token 1) 25%." in page
    assert re.findall(r'title="([^"]*)"', page) == ["75.0%", "25.0%", "0.0%"]


def test_spans_html_colours_by_the_model_that_is_more_surprised():
    spans = [Span(b"<a", 1.0, 3.0), Span(b"b", 2.0, 2.0), Span(b"c", 9.0, 1.0)]
    page = markup.spans_html(spans, ("one", "<two>"))
    styles = re.findall(r'style="([^"]*)"', page)
    assert [markup.SURPRISE in style for style in styles] == [True, False, False]
    assert [strength(style) for style in styles] == [0.4, 0, 0.8]
    assert texts(page) == ["<a", "b", "c"]
    assert f"first: one</td><td>12.00</td><td>{12 / 4 / math.log(2):.3f}" in page
    assert f"second: &lt;two&gt;</td><td>6.00</td><td>{6 / 4 / math.log(2):.3f}" in page
    assert "difference +2.00 nats" in markup.span_html(spans[0])
    assert "<td>–</td>" in markup.spans_html([], ("one", "two"))


def test_colors_of_the_legends_are_those_of_the_text():
    assert markup.difference_tint(4.0) in markup.difference_legend_html()
    assert markup.tint(markup.SURPRISE, math.log(10) / markup.FULL_NATS) in markup.legend_html()
    assert strength(markup.difference_tint(-1.0)) == pytest.approx(0.2)
