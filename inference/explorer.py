"""Explore one or two models interactively: a text that grows token by token, its alternatives, attention, comparison.

Every request may come from another thread, as it does in a web server.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from inference.eval_model import for_inference
from inference.generate import GenerationConfig
from inference.inspection import ScoredToken, alternatives, attention_maps, compare_spans, continue_tokens, score_tokens
from inference.text_samples import encode_prompt
from system.errors import UserError
from tokens.chat import encode_chat

LONGEST_PROMPT = 20_000  # characters
PLAIN, DOCUMENT, CHAT = "as typed", "new document", "chat question"  # how a prompt becomes ids, see `Explorer.encode`


@dataclass(frozen=True)
class View:
    """A text: its tokens, of which the first `prompt` were typed, and the alternatives to the chosen one."""

    tokens: tuple[ScoredToken, ...] = ()
    prompt: int = 0
    chosen: int | None = None
    options: tuple[tuple[int, float], ...] = ()  # (id, probability), most probable first

    @property
    def ids(self):
        return [token.id for token in self.tokens]


class Explorer:
    """Answers requests about the first of `models`, and about the difference between the two. They are `LoadedModel`s.

    All computations run in one thread: autocast and no_grad are settings of a thread.
    """

    def __init__(self, models, rt):
        self.models, self.tokenizer = models, models[0].tokenizer
        self.block_size = models[0].gpt.config.block_size
        self.forms = (CHAT, PLAIN, DOCUMENT) if models[0].chat else (PLAIN, DOCUMENT)
        self.thread = ThreadPoolExecutor(1)
        self.contexts = [for_inference(model.gpt, rt) for model in models]  # kept: they end with the object
        self.gpts = [self.compute(context.__enter__) for context in self.contexts]

    def compute(self, function, *args):
        return self.thread.submit(function, *args).result()

    def encode(self, prompt, form):
        """The ids of a prompt: alone as in sample.py, after end-of-text, or as a question to a chat model.

        Raises `UserError` unless they leave room for another token in the model's context.
        """
        check_length(prompt)
        if form == CHAT:
            ids, _ = encode_chat([{"role": "user", "content": prompt}], self.tokenizer)
        elif form == DOCUMENT:
            ids = [self.tokenizer.eot, *self.tokenizer.encode(prompt)]
        else:
            ids = encode_prompt(self.tokenizer, prompt)
        self.room(ids)
        return ids

    def room(self, ids):
        """How many tokens fit in the model's context after `ids`, at least 1."""
        if len(ids) >= self.block_size:
            raise UserError(f"the text has {len(ids)} tokens: expected fewer than block_size, {self.block_size}")
        return self.block_size - len(ids)

    def start(self, prompt, form, generation):
        """Yield the `View` of a prompt, then the view after each new token."""
        ids = self.encode(prompt, form)
        tokens = self.compute(score_tokens, self.gpts[0], ids)
        yield from self.extend(View(tuple(tokens), len(ids)), generation)

    def extend(self, view, generation):
        """Yield `view`, then the view after each new token. `generation`: (max_new_tokens, sampling, seed)."""
        yield view
        length, sampling, seed = generation
        config = GenerationConfig(min(length, self.room(view.ids)), sampling, seed, self.tokenizer.eot)
        new = continue_tokens(self.gpts[0], view.ids, config)
        while (token := self.compute(next, new, None)) is not None:
            view = replace(view, tokens=(*view.tokens, token))
            yield view

    def choose(self, view, index):
        """`view` with the alternatives to one of its tokens, or to the next one if `index` is their number."""
        if index == 0:
            raise UserError("nothing precedes the first token, so it has no alternatives")
        options = self.compute(alternatives, self.gpts[0], view.ids[:index])
        return replace(view, chosen=index, options=tuple(options))

    def take(self, view, number, generation):
        """Put an alternative in the place of the chosen token, and yield the views of a continuation from there."""
        token, probability = view.options[number]
        tokens = (*view.tokens[: view.chosen], ScoredToken(token, -math.log(probability) if probability else math.inf))
        yield from self.extend(View(tokens, min(view.prompt, view.chosen)), generation)

    def attention(self, prompt, form, longest):
        """(ids, maps (n_layer, nh, T, T)) of the first `longest` tokens of a prompt; later ones would change none."""
        ids = self.encode(prompt, form)[:longest]
        return ids, self.compute(attention_maps, self.gpts[0], ids)

    def compare(self, text):
        """The `Span`s of a text in the two models."""
        check_length(text)
        first, second = zip(self.gpts, (model.tokenizer for model in self.models), strict=True)
        return self.compute(compare_spans, first, second, text)


def check_length(text):
    if len(text) > LONGEST_PROMPT:
        raise UserError(f"the text has {len(text):,} characters: expected at most {LONGEST_PROMPT:,}")
