"""Text from a model: continue a prompt, and decode token ids to text while they are generated."""

import codecs

from inference.eval_model import for_inference
from inference.generate import GenerationConfig, generate
from inference.sampling import STYLES

DEFAULT_PROMPTS = {"gpt2": "Hello, I'm a language model,", "byte": ""}  # by the tokenizer's name
CONTROL_CHARACTERS = {i: "\ufffd" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


def sample_texts(
    model, tokenizer, rt, prompt=None, *, num_samples=4, max_new_tokens=32, seed=1337, sampling=STYLES["creative"]
):
    """Continue `prompt` `num_samples` times. Returns the texts, each beginning with the prompt.

    `model` is a GPT or a compiled or distributed wrapper. Its mode, its weights and torch's random state do not change.
    `prompt=None` takes the tokenizer's entry in `DEFAULT_PROMPTS`.
    """
    if prompt is None:
        prompt = DEFAULT_PROMPTS[tokenizer.name]
    config = GenerationConfig(max_new_tokens, sampling, seed, tokenizer.eot)
    with for_inference(model, rt) as gpt:
        rows = generate(gpt, [encode_prompt(tokenizer, prompt)] * num_samples, config)
    return [prompt + TextDecoder(tokenizer).add(ids) for ids in rows]


def encode_prompt(tokenizer, prompt):
    """The ids of `prompt`. An empty one becomes the end-of-text id, with which every document begins."""
    ids = tokenizer.encode(prompt)
    return ids if ids else [tokenizer.eot]


class TextDecoder:
    """Decode a stream of ids to text: an incomplete UTF-8 character is held back until its last byte arrives.

    Invalid bytes become U+FFFD, and so do control characters, which could change the state of a terminal.
    """

    def __init__(self, tokenizer):
        self.decode_bytes = tokenizer.decode_bytes
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, ids):
        """The text that `ids` complete."""
        return self.utf8.decode(self.decode_bytes(ids)).translate(CONTROL_CHARACTERS)
