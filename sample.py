"""Let a model write: `python sample.py`, or from training `sample_texts`.

    python sample.py --style wild --prompt "Once upon a time" --num_samples 2
    python sample.py --model gpt2 < prompt.txt
    python sample.py --interactive

Text streams as it is made. The samples are made together, as one batch: the first is shown live, each of the others as
soon as those before it are whole.
"""

import codecs
import dataclasses
import os
import stat
import sys
from pathlib import Path
from typing import Literal

import torch

from configurator import configure
from formats import checkpoint
from formats.read import read
from inference.eval_model import reading
from inference.generate import check_sampling, generate
from model import GPT
from system import runtime
from system.errors import UserError, command
from tokens.tokenizer import get_tokenizer

STYLES = {
    "focused": {"temperature": 0.7, "top_k": 40, "top_p": 0.9},  # clear, stays on the subject
    "creative": {"temperature": 1.0, "top_k": 50, "top_p": 1.0},  # like a blog or a story
    "wild": {"temperature": 1.2, "top_k": 0, "top_p": 1.0},  # anything goes
}
DEFAULT_PROMPTS = {"gpt2": "Hello, I'm a language model,", "byte": ""}
HOW_TO_GET_ONE = (
    "train a model (python train_gpt2.py config/quickstart.py), name a checkpoint or a folder (--model PATH), or use"
    " OpenAI's (--model gpt2)"
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Let a model continue a prompt."""

    model: str | None = None
    """a checkpoint, a folder, or gpt2 … gpt2-xl; by default the newest checkpoint under log/"""
    prompt: str | None = None
    """text to continue; by default what is piped in, else "Hello, I'm a language model," or, with bytes, nothing"""
    prompt_file: str | None = None
    """a file whose text is the prompt"""
    interactive: bool = False
    """type a prompt, watch the continuation, again; an empty line or Ctrl-D ends it"""
    num_samples: int | None = None
    """how many continuations, made together; by default 4, interactively 1"""
    max_new_tokens: int = 100
    """tokens of each continuation, unless it ends itself sooner"""
    style: Literal["focused", "creative", "wild"] = "creative"
    """a set of the three settings below: clear and on the subject; like a blog or a story; anything goes"""
    temperature: float | None = None
    """divides the logits: below 1 is safer, above 1 bolder, 0 always takes the likeliest; by default the style's"""
    top_k: int | None = None
    """keep only so many of the likeliest tokens, 0 for all; by default the style's"""
    top_p: float | None = None
    """keep only the likeliest tokens that reach this probability together; by default the style's"""
    seed: int = 1337
    """the same seed gives the same text"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format of matrix products; auto: bfloat16 where the hardware computes in it"""

    cuda_graph: bool = False
    """on a GPU, capture the decoding step as a CUDA graph: pays for some hundred tokens or more"""

    def check(self):
        if self.cuda_graph and not torch.cuda.is_available():
            raise UserError("--cuda_graph: this machine (or this build of torch) has no CUDA")
        if self.prompt is not None and self.prompt_file is not None:
            raise UserError("--prompt and --prompt_file: expected one of the two")
        if self.max_new_tokens < 1:
            raise UserError(f"--max_new_tokens {self.max_new_tokens}: expected at least 1")
        if self.num_samples is not None and self.num_samples < 1:
            raise UserError(f"--num_samples {self.num_samples}: expected at least 1")
        check_sampling(**self.sampling())

    def sampling(self):
        """The style's settings, with what the flags say instead."""
        flags = {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")}
        return STYLES[self.style] | {name: value for name, value in flags.items() if value is not None}


def sample_texts(
    model,
    tokenizer,
    run,
    prompt=None,
    *,
    num_samples=4,
    max_new_tokens=32,
    seed=1337,
    style="creative",
    on_token=None,
    cuda_graph=False,
):
    """Continuations of `prompt` (None: the tokenizer's default), prompt included: a list of `num_samples` texts.

    `model` may be compiled or wrapped; it, its mode and torch's random state stay as they are. `run` is the `Runtime`.
    `style` is a name in `STYLES` or a dict of temperature, top_k and top_p.
    """
    prompt = DEFAULT_PROMPTS[tokenizer.name] if prompt is None else prompt
    sampling = STYLES[style] if isinstance(style, str) else style
    ids = tokenizer.encode(prompt) or [tokenizer.eot]  # documents begin with end-of-text
    options = {"seed": seed, "eot": tokenizer.eot, "on_token": on_token, "cuda_graph": cuda_graph}
    with reading(model, run) as gpt:
        new = generate(gpt, [ids] * num_samples, max_new_tokens, **options, **sampling)
    return [prompt + TextDecoder(tokenizer).add(ids) for ids in new]


class TextDecoder:
    """Ids to text as they come, in whole characters: what is still half a character waits for its other half.

    Control characters, which could garble a terminal, and bytes that are no text show as U+FFFD.
    """

    HARMLESS = str.maketrans({i: "\ufffd" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"})

    def __init__(self, tokenizer):
        self.decode_bytes = tokenizer.decode_bytes
        self.utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, ids):
        return self.utf8.decode(self.decode_bytes(ids)).translate(self.HARMLESS)


class Streamer:
    """Prints samples that are made together one after the other: the current one live, the next when it is whole."""

    def __init__(self, tokenizer, prompt, num_samples):
        self.eot = tokenizer.eot
        self.decoders = [TextDecoder(tokenizer) for _ in range(num_samples)]
        self.waiting = [f"[Sample {i + 1}] {prompt}" for i in range(num_samples)]
        self.ended = [False] * num_samples
        self.current = 0

    def on_token(self, row, token):
        if token == self.eot:
            self.ended[row] = True
        else:
            self.waiting[row] += self.decoders[row].add([token])
        self.show()

    def show(self):
        while self.current < len(self.waiting):
            print(self.waiting[self.current], end="", flush=True)
            self.waiting[self.current] = ""
            if not self.ended[self.current]:
                return
            print("\n", flush=True)
            self.current += 1

    def finish(self):
        self.ended = [True] * len(self.ended)
        self.show()


def newest_checkpoint(log_dir="log"):
    """The checkpoint under `log_dir`, at any depth, that was written last."""
    folders = [folder for folder, _, _ in os.walk(log_dir)]
    paths = [path for folder in folders for path in checkpoint.list_checkpoints(folder).values()]
    if not paths:
        raise UserError(f"no checkpoint under {log_dir}/: {HOW_TO_GET_ONE}")
    return str(max(paths, key=lambda path: (path.stat().st_mtime_ns, path.name)))


def read_prompt(config):
    """The prompt that was given: a flag, a file, or standard input where a file or a pipe stands there; else None."""
    if config.prompt is not None or config.interactive:
        return config.prompt
    if config.prompt_file is not None:
        try:
            return Path(config.prompt_file).read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompt_file {config.prompt_file}: {error}") from error
    if stdin_is_given():
        print("reading the prompt from standard input", file=sys.stderr, flush=True)
        return sys.stdin.read().rstrip("\n")
    return None


def stdin_is_given():
    """Whether a pipe or a file was connected: no terminal, nor what batch systems put there."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def interact(write):
    """Continue each line that is typed, with a new seed each."""
    turn = 0
    while True:
        try:
            prompt = input("prompt> ")
        except EOFError:
            return print()
        if not prompt:
            return None
        write(prompt, turn)
        turn += 1


@command
def main(argv=None):
    config = configure(Config, argv)
    prompt = read_prompt(config)
    run = runtime.start(config.device, config.dtype, config.seed)
    model_file = read(config.model or newest_checkpoint())
    if model_file.tokenizer is None:
        raise UserError(f"{model_file.source}: its tokenizer is unknown, so its ids can't be turned into text")
    tokenizer = get_tokenizer(model_file.tokenizer)
    model = GPT.from_file(model_file).to(run.device)
    print(f"{model_file.source} on {run.device}, {config.style}: {config.sampling()}", file=sys.stderr, flush=True)
    num_samples = config.num_samples or (1 if config.interactive else 4)

    def write(prompt, turn=0):
        shown = DEFAULT_PROMPTS[tokenizer.name] if prompt is None else prompt
        streamer = Streamer(tokenizer, shown, num_samples)
        streamer.show()
        sample_texts(
            model,
            tokenizer,
            run,
            prompt,
            num_samples=num_samples,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed + turn,
            style=config.sampling(),
            on_token=streamer.on_token,
            cuda_graph=config.cuda_graph,
        )
        streamer.finish()

    if config.interactive:
        interact(write)
    else:
        write(prompt)


if __name__ == "__main__":
    main()
