"""Conversations → shards with masks: what is packed where, what counts, and what is refused."""

import itertools
import json
import random
import re

import numpy as np
import pytest

from prepare import main
from text.chat import pack
from tokens.shards import read_meta
from tokens.tokenizer import get_tokenizer

EOT = 256
ANSWERS = [f"answer {i}" * (1 + i % 3) for i in range(40)]


def record(i):
    question = f"question {i}?"
    if i % 2:
        return {"prompt": question, "completion": ANSWERS[i]}
    turns = [("system", "s"), ("user", question), ("assistant", ANSWERS[i]), ("user", "and?"), ("assistant", "no")]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def prepared(tmp_path, capsys):
    """{split: (ids, mask)} of the forty conversations in windows of 128 byte tokens, and what was printed."""
    source = write_lines(tmp_path / "chats.jsonl", map(record, range(40)))
    main([source, "--chat", "--tokenizer=byte", "--T=128", f"--out={tmp_path / 'out'}"])
    found = {}
    for split, i in (("val", 0), ("train", 1)):
        path = tmp_path / "out" / f"chat_{split}_{i:06d}.npy"
        found[split] = np.load(path), np.fromfile(path.with_suffix(".mask"), np.uint8)
    return found, capsys.readouterr().out


def test_chat_masks_count_the_answers_and_their_ends_only(prepared):
    counted = {}
    for split, (ids, mask) in prepared[0].items():
        text = get_tokenizer("byte").decode(ids[mask == 1].tolist())
        counted[split] = sorted(text.split("<|endoftext|>")[:-1])
        assert len(ids) == len(mask)
        assert set(mask) == {0, 1}
    expected = [[f" {ANSWERS[i]}"] + ([] if i % 2 else [" no"]) for i in range(40)]
    assert counted["train"] == sorted(itertools.chain(*expected[:36]))
    assert counted["val"] == sorted(itertools.chain(*expected[36:]))


def test_chat_windows_hold_whole_conversations(prepared):
    for ids, mask in prepared[0].values():
        assert len(ids) % 128 == 1
        for start in range(0, len(ids) - 1, 128):
            window, counted = ids[start : start + 128], mask[start : start + 128]
            text = get_tokenizer("byte").decode(window.tolist())
            assert text.startswith(("<|endoftext|>System:", "<|endoftext|>User:"))
            assert text.count("question ") == text.count("System: s\n\nUser: question ") + text.count(
                ">User: question "
            )
            assert window[counted == 1][-1] == EOT  # the last answer is complete


def test_chat_summary_counts_answers_padding_and_cuts(tmp_path, capsys):
    long = {"prompt": "a", "completion": "b" * 200}
    source = write_lines(tmp_path / "chats.jsonl", [{"prompt": "a", "completion": "b"}] * 3 + [long])
    main([source, "--chat", "--tokenizer=byte", "--T=64", f"--out={tmp_path / 'out'}"])
    short = len("<User: a\n\nAssistant: b<")
    chat = read_meta(tmp_path / "out")["chat"]
    assert chat == {"T": 64, "tokens": 3 * short + 64, "counted": 3 * 3 + 64 - (short - 3), "cut": 1}
    assert "1 conversation cut at 64 tokens" in capsys.readouterr().out


def test_pack_places_each_item_once_and_wastes_little():
    generator = random.Random(0)
    lengths = [generator.randint(1, 100) for _ in range(500)]
    windows = pack(lengths, 100)
    assert sorted(itertools.chain(*windows)) == list(range(500))
    assert max(sum(lengths[i] for i in window) for window in windows) <= 100
    assert len(windows) <= 1.03 * sum(lengths) / 100


USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"messages": [USER, USER]}, "message 2 has role 'user', expected assistant"),
        ({"messages": [USER, ANSWER, USER]}, "the last message is the user's"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, r"message 2 \(assistant\) is empty"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "message 1 has role 'robot'"),
        ({"prompt": "x" * 100, "completion": "b"}, "its first 64 tokens hold no answer"),
        ({"prompt": "a"}, "expected {"),
        ([1], "expected {"),
        ("text", "expected {"),
    ],
)
def test_chat_preparation_names_the_line_of_a_bad_conversation(tmp_path, capsys, line, reason):
    source = write_lines(tmp_path / "chats.jsonl", [record(1), line, record(3)])
    with pytest.raises(SystemExit) as stop:
        main([source, "--chat", "--tokenizer=byte", "--T=64", f"--out={tmp_path / 'out'}"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {source}, line 3: ")
    assert error.count("\n") == 1
    assert re.search(reason, error)
    assert not list((tmp_path / "out").glob("chat_*"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"prompt": "a", "completion": "b"}\n', "holds 1 conversation, expected at least one for each split"),
        (b'{"prompt": "h\xe9", "completion": "b"}\n', "is not UTF-8 text"),
        (b"{\n", "line 1: expected JSON"),
    ],
)
def test_chat_preparation_refuses_bad_files(tmp_path, capsys, content, reason):
    (tmp_path / "chats.jsonl").write_bytes(content)
    with pytest.raises(SystemExit):
        main([str(tmp_path / "chats.jsonl"), "--chat", "--tokenizer=byte", f"--out={tmp_path / 'out'}"])
    assert reason in capsys.readouterr().err
