"""Continue a prompt with a trained model; the text appears while it is generated.

python sample.py --style wild --prompt "Once upon a time" --num_samples 2
python sample.py --model gpt2 < prompt.txt
python sample.py --interactive
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import dataclasses
import functools
import itertools
import os
import stat
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch

from configurator import Range, configure
from formats.read import BestFlag
from inference.chat import Conversation
from inference.eval_model import find_newest, for_inference, load
from inference.generate import GenerationConfig, generate
from inference.sampling import STYLES
from inference.text_samples import DEFAULT_PROMPTS, TextDecoder, encode_prompt
from system import runtime
from system.errors import UserError, command
from tokens.chat import clean


@dataclasses.dataclass(frozen=True)
class Settings(BestFlag):
    """Continue a prompt with a model."""

    model: str | None = None
    """a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT, llm.c or GGUF;
    by default the newest checkpoint under log/"""
    prompt: str | None = None
    """text to continue; by default what is piped in, else "Hello, I'm a language model,", or nothing for byte models"""
    prompt_file: str | None = None
    """a file whose text is the prompt"""
    interactive: bool = False
    """read prompts from the keyboard and continue each; an empty line or Ctrl-D ends"""
    chat: bool = False
    """hold a conversation, with a model that was fine-tuned for it (config/finetune_chat.py); Ctrl-D ends"""
    system: str | None = None
    """--chat: what the system says before the first question"""
    num_samples: Annotated[int | None, Range(1, 10**4)] = None
    """number of continuations, generated as one batch; by default 4, interactively 1"""
    max_new_tokens: Annotated[int, Range(1, 10**6)] = 100
    """longest continuation, in tokens; end-of-text ends it earlier"""
    style: Literal["focused", "creative", "wild"] = "creative"
    """preset of the three settings below: clear and on the subject; like a blog or a story; any token possible"""
    temperature: Annotated[float | None, Range(0, 10**4)] = None
    """divides the logits: below 1 is safer, above 1 bolder, 0 always takes the most probable; by default the style's"""
    top_k: Annotated[int | None, Range(0)] = None
    """keep only this many of the most probable tokens, 0 for all; by default the style's"""
    top_p: Annotated[float | None, Range(0, 1)] = None
    """keep only the most probable tokens that together reach this probability; by default the style's"""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 1337
    """the same seed gives the same text"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", *runtime.DTYPES] = "auto"
    """number format of matrix products; auto: bfloat16 if the hardware supports it"""
    cuda_graph: bool = False
    """on a GPU, replay each decoding step as a CUDA graph: faster from about a hundred tokens on"""

    def check(self):
        if self.cuda_graph and not torch.cuda.is_available():
            raise UserError("--cuda_graph: this machine (or this build of torch) has no CUDA")
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("--prompt and --prompt_file: expected one of the two")
        if self.chat and (self.interactive or (self.prompt, self.prompt_file, self.num_samples) != (None,) * 3):
            raise UserError("--chat reads questions from the keyboard: leave out prompts, --interactive, --num_samples")
        if self.system is not None and not (self.chat and clean(self.system)):
            raise UserError(f"system = {self.system!r}: expected some text, together with --chat")
        self.sampling()  # checks its values

    def sampling(self):
        """The style's `Sampling`, with the values that were given as flags."""
        flags = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        given = {name: value for name, value in flags.items() if value is not None}
        return dataclasses.replace(STYLES[self.style], **given)


@command
def main(argv=None):
    settings = configure(Settings, argv)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # see `check_utf8`
    prompt = read_prompt(settings)
    rt = runtime.start(settings.device, settings.dtype, settings.seed)
    model = load(find_newest(settings.best) if settings.model is None else settings.model, rt, settings.best)
    tokenizer = model.tokenizer
    sampling = dataclasses.asdict(settings.sampling())
    print(f"{model.source} on {rt.device}, {settings.style}: {sampling}", file=sys.stderr, flush=True)
    with for_inference(model.gpt, rt) as gpt:
        if settings.chat:
            if not model.chat:
                print(f"warning: {model.source} was not fine-tuned on conversations", file=sys.stderr, flush=True)
            chat(gpt, tokenizer, settings)
        elif settings.interactive:
            interact(gpt, tokenizer, settings)
        else:
            stream_samples(gpt, tokenizer, settings, DEFAULT_PROMPTS[tokenizer.name] if prompt is None else prompt)


def read_prompt(settings):
    """The prompt from a flag, a file, or redirected standard input; None if there is none."""
    if settings.prompt is not None or settings.interactive or settings.chat:
        return settings.prompt and check_utf8(settings.prompt, "--prompt")
    if settings.prompt_file is not None:
        try:
            text = Path(settings.prompt_file).read_text(encoding="utf-8", errors="surrogateescape")
        except OSError as error:
            raise UserError(f"--prompt_file {settings.prompt_file}: {error.strerror}") from error
        return check_utf8(text, settings.prompt_file).rstrip("\n")
    if stdin_is_redirected():
        print("reading the prompt from standard input", file=sys.stderr, flush=True)
        return check_utf8(sys.stdin.read(), "standard input").rstrip("\n")
    return None


def check_utf8(text, source):
    """Return `text`. Raises `UserError` if it holds bytes that were not UTF-8, which Python keeps as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{source}: character {error.start} is not UTF-8; convert the text, as by iconv") from error
    return text


def stdin_is_redirected():
    """Whether standard input is a pipe or a file: not a terminal, nor the /dev/null of a batch system."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def interact(gpt, tokenizer, settings):
    """Continue each line that is typed. Every turn has its own seed: `seed` plus the turn's number."""
    num_samples = 1 if settings.num_samples is None else settings.num_samples
    turn = 0
    while True:
        try:
            prompt = check_utf8(input("prompt> "), "the prompt")
        except EOFError:  # Ctrl-D
            print()
            return
        if not prompt:
            return
        turn_settings = dataclasses.replace(settings, seed=settings.seed + turn, num_samples=num_samples)
        stream_samples(gpt, tokenizer, turn_settings, prompt)
        turn += 1


def chat(gpt, tokenizer, settings):
    """Answer each line that is typed, as turns of one conversation. Every answer has its own seed, as in `interact`."""
    conversation = Conversation(tokenizer, gpt.config.block_size, settings.max_new_tokens, settings.system)
    print(CHAT_HELP, file=sys.stderr, flush=True)
    for turn in itertools.count():
        try:
            line = input("user> ").strip()
        except EOFError:  # Ctrl-D
            print()
            return
        try:
            if line.startswith("/"):
                obey(line, conversation)
            elif line:
                answer(check_utf8(line, "the question"), conversation, gpt, settings, turn)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)


CHAT_HELP = "/reset forgets the conversation, /save FILE writes it; Ctrl-C stops an answer, Ctrl-D ends"


def obey(line, conversation):
    """Do what a line of the conversation that begins with a slash asks for."""
    name, _, path = line.partition(" ")
    if name == "/reset" and not path:
        conversation.reset()
        print("the conversation begins again", file=sys.stderr, flush=True)
    elif name == "/save" and path:
        conversation.save(path.strip())
        print(f"saved {path.strip()}", file=sys.stderr, flush=True)
    else:
        raise UserError(f"{line}: expected /reset or /save FILE")


def answer(question, conversation, gpt, settings, turn):
    """Print the model's answer while it is generated."""
    dropped = conversation.dropped
    print("assistant>", end="", flush=True)
    conversation.answer(
        question,
        gpt,
        functools.partial(print, end="", flush=True),
        sampling=settings.sampling(),
        seed=settings.seed + turn,
        cuda_graph=settings.cuda_graph,
    )
    print(flush=True)
    if conversation.dropped > dropped:
        print(f"(the oldest {conversation.dropped} turns no longer fit and were left out)", file=sys.stderr, flush=True)


def stream_samples(gpt, tokenizer, settings, prompt):
    """Print `num_samples` continuations of `prompt`, the text of the first one while it is generated."""
    num_samples = 4 if settings.num_samples is None else settings.num_samples
    config = GenerationConfig(
        settings.max_new_tokens, settings.sampling(), settings.seed, tokenizer.eot, settings.cuda_graph
    )
    printer = SamplePrinter(tokenizer, prompt, num_samples)
    generate(gpt, [encode_prompt(tokenizer, prompt)] * num_samples, config, printer.on_token)
    printer.finish()


class SamplePrinter:
    """Print samples one after the other although they are generated together.

    The current sample is printed token by token; the text of later ones is held back until it is their turn.
    """

    def __init__(self, tokenizer, prompt, num_samples):
        self.eot = tokenizer.eot
        self.decoders = [TextDecoder(tokenizer) for _ in range(num_samples)]
        self.pending = [f"[Sample {i + 1}] {prompt}" for i in range(num_samples)]  # text not yet printed
        self.finished = [False] * num_samples
        self.current = 0
        self.print_pending()

    def on_token(self, row, token):
        if token == self.eot:
            self.finished[row] = True
        else:
            self.pending[row] += self.decoders[row].add([token])
        self.print_pending()

    def print_pending(self):
        while self.current < len(self.pending):
            print(self.pending[self.current], end="", flush=True)
            self.pending[self.current] = ""
            if not self.finished[self.current]:
                return
            print("\n", flush=True)
            self.current += 1

    def finish(self):
        """Mark every sample as finished, including those that reached `max_new_tokens`."""
        self.finished = [True] * len(self.finished)
        self.print_pending()


if __name__ == "__main__":
    main()
