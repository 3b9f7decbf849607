"""HellaSwag: reading, checking and encoding its file, and the download's errors."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers import write_hellaswag

from inference import hellaswag
from inference.hellaswag import Record, encode, prepare, read_records
from system.errors import UserError
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
CPU = Runtime(torch.device("cpu"), torch.float32)


def test_encode_cuts_long_examples_and_says_so():
    records = [
        Record(0, 1, "x" * 100 + "the end", ["a", "bb", "ccc", "dddd"]),
        Record(1, 0, "short", ["a" * 100, "b", "c", "d"]),
    ]
    examples, note = encode(records, BYTE, 64)
    longest = len(" dddd")
    assert len(examples[0].ctx) + longest - 1 == 64, "the longest ending just fits, without its last token"
    assert BYTE.decode(examples[0].ctx).endswith("xxthe end"), "a context loses its beginning"
    assert examples[0].endings[3] == BYTE.encode(" dddd")
    assert (len(examples[1].ctx), len(examples[1].endings[0])) == (1, 64)
    assert note == "2 of 2 contexts lost their beginning to fit block_size 64, and in 1 examples endings lost their end"
    assert encode([Record(0, 1, "ctx", ["a", "b", "c", "d"])], BYTE, 64)[1] == ""
    assert [len(e) for e in encode(records, BYTE, 1)[0][0].endings] == [1, 1, 1, 1], "even with a block_size of 1"


GOOD = {"ind": 0, "activity_label": "x", "ctx": "a", "endings": ["b", "c", "d", "e"], "label": 1}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (json.dumps(GOOD)[:-20], "line 2 is damaged or not JSON"),
        ("[1, 2]", "line 2 holds [1, 2], expected a JSON object"),
        ("[" * 100_000, "line 2 is damaged or not JSON"),
        ("9" * 5000, "line 2 is damaged or not JSON"),
        (GOOD | {"label": -1}, "line 2: label is -1"),
        (GOOD | {"label": 2**70}, "line 2: label is 1180591620717411303424"),
        (GOOD | {"label": True}, "line 2: label is True"),
        (GOOD | {"label": "x" * 10**6}, "line 2: label is 'xxx"),
        (GOOD | {"endings": []}, "line 2: endings has 0 elements"),
        (GOOD | {"endings": None}, "line 2: endings is None"),
        (GOOD | {"endings": ["b", "c", "d"]}, "line 2: endings has 3 elements, expected 4"),
        (GOOD | {"endings": ["b", "c", "d", 5]}, "line 2: endings"),
        (GOOD | {"endings": "bcde"}, "line 2: endings is 'bcde'"),
        (GOOD | {"label": 7}, "line 2: label is 7, expected 0, 1, 2 or 3"),
        (GOOD | {"label": "1"}, "line 2: label is '1'"),
        (GOOD | {"ctx": ""}, "line 2: ctx is ''"),
        (GOOD | {"ind": None}, "line 2: ind is None"),
    ],
)
def test_read_records_names_a_malformed_line(tmp_path, bad, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + (bad if isinstance(bad, str) else json.dumps(bad)) + "\n")
    with pytest.raises(UserError, match=r"bad\.jsonl") as caught:
        read_records(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_read_records_refuses_an_empty_or_missing_file(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)))
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, message in (
        ("empty.jsonl", "is empty"),
        ("absent.jsonl", "No such file"),
        (".", "is a folder"),
        ("binary.jsonl", "is damaged or not HellaSwag's .jsonl"),
        ("pipe.jsonl", "is a pipe"),
    ):
        with pytest.raises(UserError, match=message):
            read_records(tmp_path / name)


def test_prepare_refuses_limits_below_one(tmp_path):
    for options in ({"limit": 0}, {"batch_tokens": 0}):
        with pytest.raises(UserError, match="expected at least 1"):
            prepare(CPU, BYTE, 64, data=tmp_path / "unread.jsonl", **options)


def test_prepare_limit_keeps_the_first_examples(tmp_path):
    task = prepare(CPU, BYTE, 64, data=write_hellaswag(tmp_path / "data.jsonl"), limit=5)
    assert [example.ind for example in task.examples] == [0, 1, 2, 3, 4]
    assert BYTE.decode(task.examples[2].endings[1]) == " makes 3."


def test_prepare_encodes_real_examples_with_the_gpt2_tokenizer():
    path = Path(os.environ.get("GPT2_TEST_DATA", "")) / "hellaswag" / "hellaswag_val_first1000.jsonl"
    if not path.is_file():
        pytest.skip("GPT2_TEST_DATA names no folder with hellaswag/hellaswag_val_first1000.jsonl")
    try:
        tokenizer = get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(str(error))
    task = prepare(CPU, tokenizer, 1024, data=path)
    assert (len(task.examples), task.note) == (1000, "")
    for example, record in zip(task.examples, read_records(path), strict=True):
        assert tokenizer.decode(example.ctx + example.endings[3]) == f"{record.ctx} {record.endings[3]}"


def test_original_file_says_what_to_do_without_network_or_with_a_wrong_file(tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/none.jsonl")
    monkeypatch.setattr(hellaswag, "DEFAULT_PATH", tmp_path / "f.jsonl")
    flags = r"--data \(hellaswag.py\) or --hellaswag_data \(train_gpt2.py\)"
    with pytest.raises(UserError, match=f"could not be downloaded.*{flags}"):
        prepare(CPU, BYTE, 64)
    (tmp_path / "f.jsonl").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match="is not the original"):
        prepare(CPU, BYTE, 64)
