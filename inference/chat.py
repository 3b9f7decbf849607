"""A conversation with a model in the chat format (`tokens/chat.py`): its turns, and those that the model still sees."""

import json

from inference.generate import GenerationConfig, generate
from inference.text_samples import TextDecoder
from system.errors import UserError
from system.files import AtomicFile, require_new_path
from tokens.chat import clean, encode_chat

SHORTEST_ANSWER = 16  # tokens that a long question must leave for the answer


class Conversation:
    """The turns so far. The model sees the system's and the newest others: those that leave room for an answer."""

    def __init__(self, tokenizer, block_size, max_new_tokens, system=None):
        """`max_new_tokens`: of an answer. It may take half of `block_size`, the model's context, or more if it is free.
        `system`: what the system says first, or None."""
        self.tokenizer, self.block_size, self.max_new_tokens = tokenizer, block_size, max_new_tokens
        self.begin = [] if system is None else [{"role": "system", "content": system}]
        self.turns = []  # of user and assistant
        self.dropped = 0  # turns at the beginning that no longer fit

    @property
    def messages(self):
        """All turns, also those that the model no longer sees."""
        return self.begin + self.turns

    def reset(self):
        """Forget all turns but the system's."""
        self.turns, self.dropped = [], 0

    def answer(self, text, gpt, on_text, **generation):
        """Ask `text` and return the answer. `on_text(piece)` receives it while it is generated.

        `gpt` is a `GPT` prepared for inference; `generation` holds the other fields of `GenerationConfig`. Ctrl-C ends
        the answer; what there is of it counts. Raises `UserError`, and forgets `text`, if it is empty or too long.
        """
        self.turns.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except UserError:
            self.turns.pop()
            raise
        new, decoder, pieces = min(self.max_new_tokens, self.block_size - len(ids)), TextDecoder(self.tokenizer), []

        def on_token(row, token):
            if token != self.tokenizer.eot:
                pieces.append(decoder.add([token]))
                on_text(pieces[-1])

        try:
            generate(gpt, [ids], GenerationConfig(new, eot=self.tokenizer.eot, **generation), on_token)
        except KeyboardInterrupt:
            pass
        answer = "".join(pieces)
        if clean(answer):
            self.turns.append({"role": "assistant", "content": clean(answer)})
        else:
            self.turns.pop()  # a turn without an answer
        return answer

    def prompt(self):
        """The ids of the conversation, which ends with a question, without the oldest turns if they do not fit."""
        with_history = self.block_size - min(self.max_new_tokens, self.block_size // 2)  # most tokens of a prompt
        alone = self.block_size - min(self.max_new_tokens, SHORTEST_ANSWER)
        while True:
            ids, _ = encode_chat(self.begin + self.turns[self.dropped :], self.tokenizer)
            is_alone = self.dropped + 2 >= len(self.turns)
            if len(ids) <= (alone if is_alone else with_history):
                return ids
            if is_alone:
                raise UserError(
                    f"the question has {len(ids)} tokens with its marks, but at most {alone} fit: shorten it"
                )
            self.dropped += 2  # a question and its answer

    def save(self, path):
        """Write the conversation to a new file as one line of JSON, which `prepare.py --chat` reads."""
        if not self.turns:
            raise UserError("nothing to save yet")
        require_new_path(path, "FILE")
        with AtomicFile(path) as f:
            f.write(json.dumps({"messages": self.messages}, ensure_ascii=False).encode() + b"\n")
