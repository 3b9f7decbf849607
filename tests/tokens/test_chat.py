"""The chat format: its text, which tokens count, its prompts, and Hugging Face's rendering of the same format."""

import jinja2
import pytest

from system.errors import UserError
from tokens.chat import JINJA, encode_chat
from tokens.tokenizer import get_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Answer in one word. "},
    {"role": "user", "content": "\nWhat is 2 + 3?"},
    {"role": "assistant", "content": " Five."},
    {"role": "user", "content": "And   ¿más?\n\nYes"},
    {"role": "assistant", "content": "Six<|endoftext|>"},
]
TEXT = (
    "<|endoftext|>System: Answer in one word.\n\nUser: What is 2 + 3?\n\nAssistant: Five.<|endoftext|>"
    "User: And   ¿más?\n\nYes\n\nAssistant: Six<|endoftext|>"
)
COUNTED = (" Five.<|endoftext|>", " Six<|endoftext|>")


def message(role, content="a"):
    return {"role": role, "content": content}


@pytest.fixture(params=["byte", "gpt2"])
def tokenizer(request):
    try:
        return get_tokenizer(request.param)
    except UserError as error:
        pytest.skip(str(error))


def test_chat_is_the_documented_text(tokenizer):
    ids, counted = encode_chat(CONVERSATION, tokenizer)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.decode([i for i, c in zip(ids, counted, strict=True) if c]) == "".join(COUNTED)


def test_chat_has_the_ids_of_its_text_encoded_between_the_end_of_text_ids(tokenizer):
    expected = []
    for part in TEXT.split("<|endoftext|>")[1:-1]:
        expected += [tokenizer.eot, *tokenizer.encode(part)]
    assert encode_chat(CONVERSATION, tokenizer)[0] == [*expected, tokenizer.eot]


@pytest.mark.parametrize("turns", [2, 4])
def test_chat_prompt_begins_the_whole_conversation(tokenizer, turns):
    whole, counted = encode_chat(CONVERSATION, tokenizer)
    prompt, counted_in_prompt = encode_chat(CONVERSATION[:turns], tokenizer)
    n = len(prompt)
    assert (prompt, counted_in_prompt) == (whole[:n], counted[:n])
    assert counted[n - 1 : n + 1] == [False, True]


@pytest.mark.parametrize("turns", [2, 3, 4, 5])
def test_chat_template_renders_the_same_text(turns):
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(JINJA)  # as transformers renders
    prompt = CONVERSATION[turns - 1]["role"] == "user"
    text = template.render(
        messages=CONVERSATION[:turns],
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        add_generation_prompt=prompt,
    )
    tokenizer = get_tokenizer("byte")
    assert text == tokenizer.decode(encode_chat(CONVERSATION[:turns], tokenizer)[0])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "at least one turn"),
        ("user: hello", "list of messages"),
        ([message("system")], "turn of the user"),
        ([message("assistant")], "message 1 has role 'assistant', expected system or user"),
        ([message("user"), message("user")], "message 2 has role 'user', expected assistant"),
        ([message("user"), message("assistant"), message("system")], "message 3 has role 'system', expected user"),
        ([message("user"), message("tool")], "message 2 has role 'tool', expected assistant"),
        ([message("user", " \n")], r"message 1 \(user\) is empty"),
        ([message("user", "<|endoftext|>")], r"message 1 \(user\) is empty"),
        ([message("user", None)], "message 1: expected"),
        (["hello"], "message 1: expected"),
        ([message(["user"])], "message 1 has role"),
    ],
)
def test_chat_that_is_no_conversation_is_refused(messages, reason):
    with pytest.raises(UserError, match=reason):
        encode_chat(messages, get_tokenizer("byte"))
