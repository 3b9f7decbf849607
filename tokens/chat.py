"""The chat format: a conversation as plain text in the ids that GPT-2 has, and which of its tokens the loss counts.

A conversation begins with end-of-text, as each document does. A turn is its role and its text; the blank line after it
is replaced by end-of-text where the turn is the assistant's:

    <|endoftext|>System: Answer in one word.

    User: What is the capital of France?

    Assistant: Paris.<|endoftext|>User: And of Italy?

    Assistant: Rome.<|endoftext|>

What counts is what the assistant has to write: " Paris.", " Rome." and the end-of-text ids after them.
"""

from system.errors import UserError
from tokens.tokenizer import EOT_TEXT

NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}  # role → how the text calls it
ANSWER = f"{NAMES['assistant']}:"  # what a prompt ends with
EOT = EOT_TEXT.decode()

# The same format for `tokenizer.apply_chat_template` of Hugging Face's libraries.
JINJA = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] | replace('" + EOT + "', '') | trim }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)


def encode_chat(messages, tokenizer):
    """Encode a conversation: (ids, counted), a list of token ids and one of booleans, both of length n.

    `messages` are dicts with `role` and `content`: first the system's, if there is one, then user and assistant in
    turn. A conversation whose last turn is the user's becomes a prompt: it ends with "Assistant:", and the model's
    answer goes on from there. Raises `UserError`, with the number of the message, for any other conversation.
    """
    check_messages(messages)
    ids, counted, prompt = [tokenizer.eot], [False], ""
    for message in messages:
        text = clean(message["content"])
        if message["role"] != "assistant":
            prompt += f"{NAMES[message['role']]}: {text}\n\n"
            continue
        # Encoded apart, so that a prompt's ids begin those of the whole. GPT-2's pattern cuts a text between the two
        # anyway: a space begins a token.
        question, answer = tokenizer.encode(prompt + ANSWER), [*tokenizer.encode(" " + text), tokenizer.eot]
        ids += question + answer
        counted += [False] * len(question) + [True] * len(answer)
        prompt = ""
    if prompt:
        question = tokenizer.encode(prompt + ANSWER)
        ids += question
        counted += [False] * len(question)
    return ids, counted


def clean(text):
    """`text` as a turn holds it: without space at its ends, and without the characters that mark its end."""
    return text.replace(EOT, "").strip()


def check_messages(messages):
    """Raise `UserError` unless `messages` is a conversation that `encode_chat` can encode."""
    if not isinstance(messages, list) or not messages:
        raise UserError("expected a list of messages with at least one turn of the user")
    expected = ("system", "user")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise UserError(f'message {number}: expected {{"role": …, "content": TEXT}}')
        role = message.get("role")
        if role not in expected:
            raise UserError(f"message {number} has role {str(role)[:40]!r}, expected {' or '.join(expected)}")
        if not clean(message["content"]):
            raise UserError(f"message {number} ({role}) is empty")
        expected = ("assistant",) if role == "user" else ("user",)
    if expected == ("user",) and messages[-1]["role"] == "system":
        raise UserError("expected a turn of the user after the system's")
