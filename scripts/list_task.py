"""A task to see that fine-tuning on conversations works: reverse or sort short lists of letters, asked in words.

    python -m scripts.list_task                              # writes data/lists/train.jsonl and held_out.jsonl
    python -m scripts.list_task --model log/chat_lists       # asks the model what was held out: exact matches

No list of the held-out questions is in a question of the training conversations.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tqdm import tqdm

from configurator import Range, configure
from inference.eval_model import for_inference, load
from inference.generate import GenerationConfig, generate
from inference.sampling import GREEDY
from system import runtime
from system.errors import UserError, command
from system.files import AtomicFile
from text.chat import parse
from tokens.chat import clean, encode_chat

LETTERS = "abcdefghijklmnopqrst"
LENGTHS = range(3, 6)
ASK = {"reverse": ("Reverse the list", "Write backwards:"), "sort": ("Sort the list", "Put in order:")}
BATCH = 64  # questions that are answered together
LONGEST_ANSWER = 32  # tokens


@dataclass(frozen=True)
class Settings:
    """Make the conversations of the task, or score a model on those that were held out."""

    folder: str = "data/lists"
    """folder of train.jsonl and held_out.jsonl; the same seed writes the same files"""
    count: Annotated[int, Range(1, 10**6)] = 20_000
    """conversations to train on"""
    held_out: Annotated[int, Range(1, 10**4)] = 400
    """conversations to test with"""
    seed: Annotated[int, Range(0)] = 0
    """seed of the lists"""
    model: str | None = None
    """score this model instead: a run's folder or checkpoint, or a folder in Hugging Face's format"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where the model runs"""


@command
def main(argv=None):
    settings = configure(Settings, argv)
    if settings.model is None:
        make(settings)
    else:
        score(settings)


# ---- the conversations ----


def make(settings):
    """Write both files."""
    generator, folder = random.Random(settings.seed), Path(settings.folder)
    folder.mkdir(parents=True, exist_ok=True)
    held_out = [new_list(generator) for _ in range(settings.held_out)]
    write(folder / "held_out.jsonl", (conversation(letters, generator) for letters in held_out))
    excluded = set(held_out)
    write(
        folder / "train.jsonl", (conversation(new_list(generator, excluded), generator) for _ in range(settings.count))
    )
    print(f"{folder}: {settings.count:,} conversations in train.jsonl, {settings.held_out:,} in held_out.jsonl")


def write(path, records):
    with AtomicFile(path) as f:
        f.writelines(json.dumps(record).encode() + b"\n" for record in records)


def new_list(generator, excluded=()):
    """Different letters in random order, a list that is not `excluded`."""
    while True:
        letters = tuple(generator.sample(LETTERS, generator.choice(LENGTHS)))
        if letters not in excluded:
            return letters


def conversation(letters, generator):
    task = generator.choice(sorted(ASK))
    answer = sorted(letters) if task == "sort" else letters[::-1]
    return {"prompt": f"{generator.choice(ASK[task])} {' '.join(letters)}", "completion": " ".join(answer)}


# ---- the score ----


def score(settings):
    """Print how many of the held-out questions the model answers exactly, by greedy decoding."""
    path = Path(settings.folder, "held_out.jsonl")
    if not path.exists():
        raise UserError(f"{path} does not exist: make it by python -m scripts.list_task --folder {settings.folder}")
    conversations = [parse(line) for line in path.read_bytes().splitlines()]
    rt = runtime.start(settings.device)
    model = load(settings.model, rt)
    correct, wrong = 0, None
    with for_inference(model.gpt, rt) as gpt:
        for start in tqdm(range(0, len(conversations), BATCH), "asking", leave=False, disable=None):
            for chat, given in zip(*ask(gpt, model.tokenizer, conversations[start : start + BATCH]), strict=True):
                if given == chat[-1]["content"]:
                    correct += 1
                else:
                    wrong = wrong or (chat[0]["content"], given)
    print(f"{model.source}: exact match {correct}/{len(conversations)}={correct / len(conversations):.4f}")
    if wrong:
        print(f"the first mistake: {wrong[0]!r} → {wrong[1]!r}")


def ask(gpt, tokenizer, conversations):
    """Return the conversations and the model's answers to their first messages."""
    prompts = [encode_chat(chat[:1], tokenizer)[0] for chat in conversations]
    rows = generate(gpt, prompts, GenerationConfig(LONGEST_ANSWER, GREEDY, eot=tokenizer.eot))
    return conversations, [clean(tokenizer.decode(ids)) for ids in rows]


if __name__ == "__main__":
    main()
