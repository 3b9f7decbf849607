"""HellaSwag: choose the right ending of a short story from four.

Zellers et al. 2019, "HellaSwag: Can a Machine Really Finish Your Sentence?": 10,042 validation examples. `acc` takes
the ending with the lowest summed loss, `acc_norm` the one with the lowest mean loss per token.
"""

from dataclasses import dataclass
from pathlib import Path

from inference.multiple_choice import Example, make_task, score
from system.boundary import foreign, parse_json, require_regular_file, show
from system.download import download, has_checksum
from system.errors import UserError

URL = "https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"
SHA256 = "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588"  # as in Hugging Face's datasets, 2020
DEFAULT_PATH = Path("data/hellaswag/hellaswag_val.jsonl")
ANOTHER_FILE = "name it with --data (hellaswag.py) or --hellaswag_data (train_gpt2.py)"
ENDINGS = 4
FILE = "HellaSwag's .jsonl"


@dataclass(frozen=True)
class Record:
    """One line of the file, in the original's field names."""

    ind: int
    label: int  # which ending is right, 0 … 3
    ctx: str
    endings: list[str]


def prepare(rt, tokenizer, block_size, *, data=None, limit=None, batch_tokens=None):
    """Read, encode and batch HellaSwag for a model of `block_size`: a `Task` for `evaluate`. Every rank must call it.

    `data` is a file; None means the original, downloaded if it is absent. `limit` keeps the first examples.
    `batch_tokens` is the most tokens per forward pass, padding included; None chooses it by the device. Only the master
    reads the file; its `UserError` (no network, a malformed line) is raised on every rank.
    """
    check_at_least_one(batch_tokens=batch_tokens, limit=limit)
    records = rt.from_master(lambda: read_records(original_file() if data is None else data, limit))
    examples, note = encode(records, tokenizer, block_size)
    return make_task(examples, rt, batch_tokens, note)


def check_at_least_one(**settings):
    for name, value in settings.items():
        if value is not None and value < 1:
            raise UserError(f"{name} = {value}: expected at least 1")


def evaluate(model, task, rt):
    """(correct by sum, correct by mean, examples), summed over ranks; see `multiple_choice.score`."""
    return score(model, task, rt).counts()


def read_records(path, limit=None):
    """Read and check a `.jsonl` file with the original's fields. Returns a list of `Record`, at most `limit`.

    Raises `UserError` naming the first malformed line, or if the file is unreadable or empty.
    """
    require_regular_file(path, FILE)
    with foreign(path, FILE):
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if len(records) == limit:
            break
        if line.strip():
            records.append(parse_record(line, f"{path}, line {number}"))
    if not records:
        raise UserError(f"{path} is empty: expected one HellaSwag example per line")
    return records


def parse_record(line, where):
    fields = parse_json(line, where, "is the file truncated?")
    record = Record(*(fields.get(name) for name in ("ind", "label", "ctx", "endings")))
    check_record(record, where)
    return record


def check_record(record, where):
    if type(record.ind) is not int:
        raise UserError(f"{where}: ind is {show(record.ind)}, expected a number")
    if type(record.label) is not int or not 0 <= record.label < ENDINGS:
        raise UserError(f"{where}: label is {show(record.label)}, expected 0, 1, 2 or 3")
    if not isinstance(record.ctx, str) or not record.ctx:
        raise UserError(f"{where}: ctx is {show(record.ctx)}, expected a non-empty text")
    endings = record.endings
    if not isinstance(endings, list):
        raise UserError(f"{where}: endings is {show(endings)}, expected a list of {ENDINGS} texts")
    if len(endings) != ENDINGS or not all(isinstance(ending, str) for ending in endings):
        raise UserError(f"{where}: endings has {len(endings)} elements, expected {ENDINGS} texts")


def encode(records, tokenizer, block_size):
    """Encode `Record`s and cut them to `block_size`. Returns ([`Example`], a note on what was cut or "").

    If the context and the longest ending do not fit, the context loses its beginning; an ending longer than
    `block_size` loses its end. At least one context token remains: it predicts the first token of each ending.
    """
    examples, cut_contexts, cut_endings = [], 0, 0
    for record in records:
        ctx = tokenizer.encode(record.ctx)
        endings = [tokenizer.encode(" " + text) for text in record.endings]
        cut_endings += any(len(ending) > block_size for ending in endings)
        endings = [ending[:block_size] for ending in endings]
        room = block_size + 1 - max(map(len, endings))  # the last token of an ending is no input
        cut_contexts += len(ctx) > room
        examples.append(Example(record.ind, record.label, ctx[-room:], endings))
    if not cut_contexts and not cut_endings:
        return examples, ""
    note = f"{cut_contexts} of {len(examples)} contexts lost their beginning to fit block_size {block_size}"
    if cut_endings:
        note += f", and in {cut_endings} examples endings lost their end"
    return examples, note


def original_file():
    """The path of the original validation file, downloaded if absent. Raises `UserError` if its checksum differs."""
    if not DEFAULT_PATH.exists():
        download(URL, DEFAULT_PATH, SHA256, f"to use another copy, {ANOTHER_FILE}")
    if not has_checksum(DEFAULT_PATH, SHA256):
        raise UserError(f"{DEFAULT_PATH} is not the original file (wrong checksum): delete it, or {ANOTHER_FILE}")
    return DEFAULT_PATH
