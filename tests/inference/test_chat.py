"""A conversation: what the model sees of it, how an answer ends, and what is kept."""

import json

import pytest
from models import small_gpt

from inference.chat import Conversation
from inference.sampling import GREEDY
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

SYSTEM = {"role": "system", "content": "s"}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def tokenizer():
    return get_tokenizer("byte")


@pytest.fixture
def talk(tokenizer, monkeypatch):
    """A function that holds a conversation in which the model gives the `answers`; returns it and the prompts."""

    def hold(questions, answers, block_size=128, max_new_tokens=16, interrupt_after=None):
        conversation, prompts, left = Conversation(tokenizer, block_size, max_new_tokens, "s"), [], iter(answers)

        def generate(gpt, contexts, config, on_token):
            prompts.append(tokenizer.decode(contexts[0]))
            ids = [*tokenizer.encode(next(left)), tokenizer.eot]
            for i, token in enumerate(ids[: config.max_new_tokens]):
                if i == interrupt_after:
                    raise KeyboardInterrupt
                on_token(0, token)

        monkeypatch.setattr("inference.chat.generate", generate)
        given = [conversation.answer(question, None, lambda piece: None, sampling=GREEDY) for question in questions]
        return conversation, prompts, given

    return hold


def test_conversation_prompts_with_all_turns_and_keeps_the_answers(talk):
    conversation, prompts, given = talk(["one?", "two?"], [" 1", " 2"])
    assert given == [" 1", " 2"]
    first = "<|endoftext|>System: s\n\nUser: one?\n\nAssistant:"
    assert prompts == [first, first + " 1<|endoftext|>User: two?\n\nAssistant:"]
    assert conversation.messages == [SYSTEM, user("one?"), assistant("1"), user("two?"), assistant("2")]


def test_conversation_drops_its_oldest_turns_but_not_the_systems(talk):
    conversation, prompts, _ = talk(["one?", "two?", "three?"], [" 1", " 2", " 3"], block_size=72)
    assert prompts[2] == "<|endoftext|>System: s\n\nUser: three?\n\nAssistant:"
    assert conversation.dropped == 4
    assert len(conversation.messages) == 7


def test_conversation_refuses_a_question_that_does_not_fit_and_forgets_it(talk):
    conversation, _, _ = talk(["one?"], [" 1"], block_size=64)
    with pytest.raises(UserError, match=r"the question has 90 tokens with its marks, but at most 48 fit"):
        conversation.answer("x" * 60, None, None, sampling=GREEDY)
    assert conversation.messages == [SYSTEM, user("one?"), assistant("1")]


def test_conversation_keeps_an_answer_that_ctrl_c_ended(talk):
    conversation, _, given = talk(["one?"], [" 12345"], interrupt_after=3)
    assert given == [" 12"]
    assert conversation.messages == [SYSTEM, user("one?"), assistant("12")]


def test_conversation_forgets_a_question_without_an_answer(talk):
    conversation, _, given = talk(["one?"], [" "])
    assert given == [" "]
    assert conversation.messages == [SYSTEM]


def test_conversation_saves_the_form_of_prepare_and_never_overwrites(talk, tmp_path):
    conversation, _, _ = talk(["öne?"], [" 1"])
    conversation.save(tmp_path / "a.jsonl")
    line = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert json.loads(line) == {"messages": conversation.messages}
    with pytest.raises(UserError, match="exists already"):
        conversation.save(tmp_path / "a.jsonl")
    conversation.reset()
    with pytest.raises(UserError, match="nothing to save yet"):
        conversation.save(tmp_path / "b.jsonl")


def test_conversation_with_a_model_fills_its_context_at_most(tokenizer):
    model = small_gpt(vocab_size=257, block_size=64).eval()
    pieces, conversation = [], Conversation(tokenizer, 64, 1000)
    answer = conversation.answer("?", model, pieces.append, sampling=GREEDY)
    assert "".join(pieces) == answer
    assert len(pieces) <= 64 - len("<User: ?\n\nAssistant:")
