"""The explorer: its texts are those of sample.py, an alternative continues the text before it, inputs are bounded."""

import dataclasses
import math

import pytest

from inference.eval_model import LoadedModel
from inference.explorer import CHAT, DOCUMENT, LONGEST_PROMPT, PLAIN, Explorer, View
from inference.generate import GenerationConfig, generate
from inference.inspection import alternatives, score_tokens
from inference.sampling import GREEDY, STYLES
from model import GPTConfig
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
GENERATION = (8, STYLES["creative"], 3)


@pytest.fixture
def gpt(make_gpt):
    return make_gpt(GPTConfig(block_size=64, vocab_size=257, n_layer=2, n_head=2, n_embd=32)).eval()


@pytest.fixture
def explorer(gpt, rt):
    return Explorer([LoadedModel(gpt, BYTE, "a.pt", chat=True), LoadedModel(gpt, BYTE, "b.pt", chat=False)], rt)


def test_explorer_streams_the_text_of_sample_py(explorer, gpt):
    views = list(explorer.start("ab", PLAIN, GENERATION))
    new = generate(gpt, [BYTE.encode("ab")], GenerationConfig(*GENERATION))[0]
    assert [view.ids for view in views] == [BYTE.encode("ab") + new[:n] for n in range(9)]
    assert {view.prompt for view in views} == {2}
    nats = [token.nats for token in score_tokens(gpt, views[-1].ids)]
    assert [token.nats for token in views[-1].tokens[1:]] == pytest.approx(nats[1:], abs=1e-4)


def test_explorer_encodes_a_prompt_in_three_forms(explorer):
    assert explorer.encode("ab", PLAIN) == [97, 98]
    assert explorer.encode("", PLAIN) == [256]
    assert explorer.encode("ab", DOCUMENT) == [256, 97, 98]
    assert explorer.encode("ab", CHAT) == [256, *b"User: ab\n\nAssistant:"]
    assert explorer.forms == (CHAT, PLAIN, DOCUMENT)  # the first is the page's default


def test_explorer_offers_no_chat_to_a_model_that_was_not_tuned_for_it(gpt, rt):
    assert Explorer([LoadedModel(gpt, BYTE, "b.pt", chat=False)], rt).forms == (PLAIN, DOCUMENT)


def test_explorer_continues_from_an_alternative(explorer, gpt):
    *_, view = explorer.start("abc", PLAIN, GENERATION)
    chosen = explorer.choose(view, 5)
    assert chosen == dataclasses.replace(view, chosen=5, options=tuple(alternatives(gpt, view.ids[:5])))
    *_, other = explorer.take(chosen, 2, (4, GREEDY, 0))
    token, probability = chosen.options[2]
    begin = [*view.ids[:5], token]
    assert other.ids == begin + generate(gpt, [begin], GenerationConfig(4, GREEDY))[0]
    assert other.tokens[:5] == view.tokens[:5]
    assert other.tokens[5].nats == pytest.approx(-math.log(probability))
    assert (other.prompt, other.chosen, other.options) == (3, None, ())


def test_explorer_replaces_a_token_of_the_prompt_or_adds_the_next_one(explorer):
    *_, view = explorer.start("abc", PLAIN, GENERATION)
    *_, other = explorer.take(explorer.choose(view, 1), 0, GENERATION)
    assert (other.prompt, other.ids[0]) == (1, 97)
    *_, longer = explorer.take(explorer.choose(view, len(view.ids)), 0, (1, GREEDY, 0))
    assert longer.ids[:-2] == view.ids


def test_explorer_bounds_the_text(explorer):
    *_, view = explorer.start("a" * 60, PLAIN, GENERATION)
    assert len(view.ids) == 64  # the model's context, instead of 60 + 8
    with pytest.raises(UserError, match="the text has 64 tokens: expected fewer than block_size, 64"):
        list(explorer.extend(view, GENERATION))
    with pytest.raises(UserError, match="the text has 64 tokens"):
        explorer.encode("a" * 64, PLAIN)
    for refuse in (lambda text: explorer.encode(text, PLAIN), explorer.compare):
        with pytest.raises(UserError, match="the text has 20,001 characters: expected at most 20,000"):
            refuse("a" * (LONGEST_PROMPT + 1))
    with pytest.raises(UserError, match="nothing precedes the first token"):
        explorer.choose(View(), 0)


def test_explorer_attention_is_that_of_the_first_tokens(explorer):
    ids, maps = explorer.attention("abcdef", PLAIN, 4)
    assert (ids, maps.shape) == ([97, 98, 99, 100], (2, 2, 4, 4))
    _, whole = explorer.attention("abcdef", PLAIN, 100)
    assert maps.numpy() == pytest.approx(whole[..., :4, :4].numpy(), abs=1e-5)


def test_explorer_finds_no_difference_between_equal_models(explorer):
    spans = explorer.compare("abc")
    assert [span.text for span in spans] == [b"a", b"b", b"c"]
    assert all(span.first == span.second > 0 for span in spans)
