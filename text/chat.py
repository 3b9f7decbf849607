"""Conversations → token shards, with masks that say which tokens the loss counts.

Whole conversations are packed into windows of T tokens, the sequence length of the run that trains on them. In a window
one follows the other, as documents do in pretraining: the model sees an earlier one before a later one. What is left of
a window is filled with end-of-text, which does not count.
"""

import bisect
import json
import time
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from system.boundary import foreign
from system.errors import UserError
from system.words import format_count
from text.documents import is_jsonl, not_utf8
from text.packed import is_packed, open_packed
from text.progress import writing
from text.shard_writer import finish
from tokens.chat import check_messages, encode_chat
from tokens.shards import shard_name, write_masked_shard
from tokens.tokenizer import get_tokenizer

FORM = '{"messages": [{"role": "user", "content": "…"}, …]} or {"prompt": "…", "completion": "…"}'


@dataclass(frozen=True)
class Chat:
    """A conversation: its ids, uint16 (n,), and which of them count, bool (n,); its text has `bytes` bytes."""

    ids: np.ndarray
    counted: np.ndarray
    bytes: int


def write_chats(progress, paths, T, val):
    """Write the conversations of .jsonl files as shards with masks; returns the content of `meta.json`.

    The last `val` of the conversations, 0 … 1, are validation. A conversation of more than T tokens is cut at its end.
    Raises `UserError`, with file and line, for one that is not in the form, or of which nothing that counts is left.
    """
    start, tokenizer = time.monotonic(), get_tokenizer(progress.request["tokenizer"])
    chats = [chat for path in paths for chat in read_chats(path, tokenizer, T)]
    if len(chats) < 2:
        found = format_count(len(chats), "conversation")
        raise UserError(f"{progress.request['source']} holds {found}, expected at least one for each split")
    first_val = len(chats) - min(max(1, round(val * len(chats))), len(chats) - 1)
    progress.begin()
    tokens, counted, cut = 0, 0, 0
    for split, part in (("val", chats[first_val:]), ("train", chats[:first_val])):
        windows = pack([min(len(chat.ids), T) for chat in part], T)
        per_shard = progress.shard_tokens // T
        for i in range(0, len(windows), per_shard):
            ids, mask = lay_out([[part[k] for k in window] for window in windows[i : i + per_shard]], T, tokenizer.eot)
            path = progress.out / shard_name("chat", len(progress.shards), "." + progress.request["format"], split)
            with writing(path):
                progress.shards.append(write_masked_shard(path, ids, mask))
            counted += int(mask.sum())
        tokens += sum(min(len(chat.ids), T) for chat in part)
        cut += sum(len(chat.ids) > T for chat in part)
    progress.documents, progress.bytes = len(chats), sum(chat.bytes for chat in chats)
    progress.seconds = time.monotonic() - start
    return finish(progress, chat={"T": T, "tokens": tokens, "counted": counted, "cut": cut})


def read_chats(path, tokenizer, T):
    """Yield the `Chat`s of a .jsonl file. Raises `UserError`, with the line, for what is not in the form."""
    if not is_jsonl(path):
        raise UserError(f"{path}: expected a .jsonl file with a conversation on each line, {FORM}")
    with foreign(path, "a file of conversations"), open_packed(path) if is_packed(path) else open(path, "rb") as f:
        lines = f.read().split(b"\n")
    for number, line in enumerate(tqdm(lines, f"reading {path}", unit=" lines", leave=False, disable=None), 1):
        if line.strip():
            try:
                yield read_chat(line, tokenizer, T)
            except UnicodeDecodeError as error:
                raise not_utf8(path, sum(len(before) + 1 for before in lines[: number - 1]) + error.start) from error
            except UserError as error:
                raise UserError(f"{path}, line {number}: {error}") from error


def read_chat(line, tokenizer, T):
    """The `Chat` of a line of JSON."""
    messages = parse(line)
    check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise UserError("the last message is the user's, expected an answer of the assistant after it")
    ids, counted = encode_chat(messages, tokenizer)
    if not any(counted[:T]):
        raise UserError(f"its first {T} tokens hold no answer, only the prompt: shorten it, or raise --T")
    size = len(tokenizer.decode_bytes([token for token in ids if token != tokenizer.eot]))
    return Chat(np.array(ids, np.uint16), np.array(counted), size)


def parse(line):
    """The messages of a line of JSON, not checked."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"expected JSON like {FORM}, found {line[:40]!r}") from error
    if isinstance(record, dict) and "messages" in record:
        return record["messages"]
    if isinstance(record, dict) and "prompt" in record and "completion" in record:
        return [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        ]
    raise UserError(f"expected {FORM}, found {line[:40]!r}")


def pack(lengths, T):
    """Distribute items of `lengths`, each at most T, over windows of T: a list of lists of their numbers.

    Best fit, longest first (Johnson et al. 1974): each goes where the least room is left. Windows and their content
    are then sorted by number, so that the order of the items does not depend on their lengths more than necessary.
    """
    rooms, windows = [], []  # rooms: sorted (room that is left, number of the window)
    for item in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect.bisect_left(rooms, (lengths[item], -1))
        if place == len(rooms):
            room, window = T, len(windows)
            windows.append([])
        else:
            room, window = rooms.pop(place)
        windows[window].append(item)
        bisect.insort(rooms, (room - lengths[item], window))
    return sorted(sorted(window) for window in windows)


def lay_out(windows, T, eot):
    """The tokens of a shard, uint16 (n,), and which of them count, bool (n,): n is T per window and the token after.

    `windows` are lists of `Chat`s; the end of a conversation that does not fit is cut off.
    """
    ids, counted = np.full(len(windows) * T + 1, eot, np.uint16), np.zeros(len(windows) * T + 1, bool)
    for number, chats in enumerate(windows):
        start = number * T
        for chat in chats:
            stop = min(start + len(chat.ids), (number + 1) * T)
            ids[start:stop], counted[start:stop] = chat.ids[: stop - start], chat.counted[: stop - start]
            start = stop
    return ids, counted
