"""Token shards: both file formats, damaged files, and folders with and without meta.json."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from system.errors import RankError, UserError
from tokens.shards import (
    Shards,
    list_shards,
    open_data,
    open_shard,
    read_meta,
    shard_name,
    split_of,
    write_meta,
    write_shard,
)

TOKENS = np.array([50256, 1, 2, 65535, 0], dtype=np.uint16)


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_write_shard_then_open_shard_returns_the_tokens(tmp_path, suffix):
    entry = write_shard(tmp_path / f"x{suffix}", TOKENS)
    assert open_shard(tmp_path / f"x{suffix}").tolist() == TOKENS.tolist()
    assert (entry["tokens"], entry["max_id"]) == (5, 65535)


def test_write_shard_npy_is_readable_by_numpy(tmp_path):
    write_shard(tmp_path / "x.npy", TOKENS)
    array = np.load(tmp_path / "x.npy")
    assert array.dtype == np.uint16
    assert array.tolist() == TOKENS.tolist()


def test_write_shard_bin_has_llmcs_layout(tmp_path):
    """llm.c, dataloader.h: a header of 256 int32 (magic, version, count), then exactly `count` uint16."""
    write_shard(tmp_path / "x.bin", TOKENS)
    data = (tmp_path / "x.bin").read_bytes()
    assert struct.unpack("<3i", data[:12]) == (20240520, 1, 5)
    assert not any(data[12:1024])
    assert data[1024:] == struct.pack("<5H", *TOKENS.tolist())


def damage(path, how):
    data = path.read_bytes()
    path.write_bytes({"truncated": data[:-1], "too long": data + b"\0", "(damaged or )?not a": b"\1" * 2048}[how])


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
@pytest.mark.parametrize("how", ["truncated", "too long", "(damaged or )?not a"])
def test_open_shard_reports_a_damaged_file(tmp_path, suffix, how):
    path = tmp_path / f"x{suffix}"
    write_shard(path, TOKENS)
    damage(path, how)
    with pytest.raises(UserError, match=rf"x\{suffix} is {how}"):
        open_shard(path)


def test_open_shard_reports_other_arrays(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(4, np.float32))
    with pytest.raises(UserError, match=r"float32.*expected one-dimensional uint16"):
        open_shard(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros(0, np.uint16))
    with pytest.raises(UserError, match="no tokens"):
        open_shard(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("stem", "split"),
    [
        ("edufineweb_val_000000", "val"),
        ("tiny_shakespeare_train", "train"),
        ("interval_train_000001", "train"),
        ("train_val_000000", "val"),
        ("train_val_train_000001", "train"),
        ("notes", None),
    ],
)
def test_split_of_is_the_last_split_in_the_name(stem, split):
    assert split_of(stem) == split


def make_folder(tmp_path, name="edufineweb"):
    entries = [write_shard(tmp_path / shard_name(name, i, ".npy"), TOKENS + i) for i in range(3)]
    write_meta(tmp_path, {"tokenizer": "byte", "source": "s", "shards": entries})


def test_open_data_reads_shard_0_as_validation_and_sorts_by_number(tmp_path):
    make_folder(tmp_path, "valuable_train")
    data = open_data(tmp_path, "make")
    assert [shard[0] for shard in data.splits["val"]] == [50256]
    assert [shard[0] for shard in data.splits["train"]] == [50257, 50258]
    assert data.tokenizer == "byte"


def test_open_data_scans_a_foreign_folder_once_as_gpt2(tmp_path):
    write_shard(tmp_path / "tiny_shakespeare_train.bin", TOKENS)
    write_shard(tmp_path / "tiny_shakespeare_val.bin", TOKENS[:2])
    data = open_data(tmp_path, "make")
    assert (data.tokenizer, data.max_id, data.tokens("train"), data.tokens("val")) == ("gpt2", 65535, 5, 2)
    assert {entry["file"] for entry in json.loads((tmp_path / "meta.json").read_text())["shards"]} == {
        "tiny_shakespeare_train.bin",
        "tiny_shakespeare_val.bin",
    }


def test_open_data_reports_files_that_differ_from_meta_json(tmp_path):
    make_folder(tmp_path)
    extra = tmp_path / "more_train_000009.npy"
    write_shard(extra, TOKENS)
    with pytest.raises(UserError, match=r"more_train_000009\.npy is not listed"):
        open_data(tmp_path, "make")
    extra.unlink()
    write_shard(list_shards(tmp_path, "train")[0], TOKENS[:3])
    with pytest.raises(UserError, match=r"holds 3 tokens, meta.json says 5"):
        open_data(tmp_path, "make")
    list_shards(tmp_path, "train")[0].unlink()
    with pytest.raises(UserError, match=r"edufineweb_train_000001.npy is listed .* but missing"):
        open_data(tmp_path, "make")


def make_linked_folder(folder, shards=200):
    """Training shards of 1 … 40 tokens that begin with their length, each file under several names."""
    folder.mkdir()
    entries = [write_shard(folder / shard_name("x", 0, ".npy"), TOKENS)]
    for i in range(1, shards):
        path, length = folder / shard_name("x", i, (".npy", ".bin")[i % 2]), i % 40 + 1
        if i <= 40:
            entries.append(write_shard(path, np.arange(length, 2 * length, dtype=np.uint16)))
        else:
            os.link(folder / entries[i - 40]["file"], path)
            entries.append(entries[i - 40] | {"file": path.name})
    write_meta(folder, {"tokenizer": "byte", "source": "s", "shards": entries})
    return folder


def maps_of(folder):
    """The shards in a folder that this process has mapped or open."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    open_files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return [sum(str(folder) in name for name in names) for names in (maps, open_files)]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux lists the maps of a process")
def test_shards_of_a_large_folder_are_opened_when_used_and_few_stay_mapped(tmp_path):
    folder = make_linked_folder(tmp_path / "data")
    shards = open_data(folder, "make").splits["train"]
    assert maps_of(folder) == [0, 0]
    shards = Shards(shards.paths, shards.lengths, max_mapped=4)
    for i in (*range(199), *range(199)):
        n = (i + 1) % 40 + 1
        assert shards.lengths[i] == n
        assert shards.read(i, n // 2, n).tolist() == list(range(n + n // 2, 2 * n)), "read, mapped or not"
        assert shards[i].tolist() == list(range(n, 2 * n)), "whole"
    assert maps_of(folder) == [4, 4]


@pytest.mark.parametrize("max_mapped", [0, 4])
@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_shards_report_a_file_that_only_its_header_shows_to_be_damaged_when_it_is_used(tmp_path, suffix, max_mapped):
    entries = [write_shard(tmp_path / shard_name("x", i, suffix), TOKENS) for i in range(3)]
    write_meta(tmp_path, {"tokenizer": "byte", "source": "s", "shards": entries})
    path = tmp_path / shard_name("x", 1, suffix)
    opened = open_data(tmp_path, "make").splits["train"]
    shards = Shards(opened.paths, opened.lengths, max_mapped)
    path.write_bytes(b"\1" * path.stat().st_size)
    with pytest.raises(UserError, match=rf"x_train_000001\{suffix} is (damaged or )?not a"):
        open_data(tmp_path, "make")  # which checks a few shards at once
    assert shards.read(1, 0, 2).tolist() == TOKENS[:2].tolist()
    for use in (lambda: shards.read(0, 0, 2), lambda: shards[0]):
        with pytest.raises(RankError, match=rf"x_train_000001\{suffix} is (damaged or )?not a"):
            use()


def test_shards_report_a_file_that_changes_while_it_is_in_use(tmp_path):
    write_shard(tmp_path / "x.npy", TOKENS)
    shards = Shards([tmp_path / "x.npy"], [5], max_mapped=0)
    assert shards.read(0, 3, 5).tolist() == TOKENS[3:].tolist()
    damage(tmp_path / "x.npy", "truncated")
    with pytest.raises(RankError, match=r"x\.npy is truncated"):
        shards.read(0, 3, 5)
    (tmp_path / "x.npy").unlink()
    with pytest.raises(RankError, match=r"x\.npy: No such file"):
        shards.read(0, 3, 5)


def test_open_data_accepts_a_header_of_another_length(tmp_path):
    """NumPy before 1.14 padded headers to a multiple of 16 bytes."""
    make_folder(tmp_path)
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (5,), }".ljust(69) + b"\n"
    tokens = (tmp_path / "edufineweb_train_000001.npy").read_bytes()[128:]
    (tmp_path / "edufineweb_train_000001.npy").write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", 70) + header + tokens)
    shards = open_data(tmp_path, "make").splits["train"]
    assert shards[0].tolist() == (TOKENS + 1).tolist()
    shards.max_mapped = 0
    assert shards.read(0, 1, 3).tolist() == (TOKENS + 1)[1:3].tolist()


ENTRY = {"file": "x_train.npy", "tokens": 5, "max_id": 7, "sha256": "0"}


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "not JSON",
        "[" * 100_000,
        '{"shards":' * 100_000,
        *map(
            json.dumps,
            [
                {"tokenizer": "byte"},
                {"tokenizer": ["byte"], "shards": []},
                {"tokenizer": "other", "shards": [ENTRY]},
                {"tokenizer": "byte", "shards": {"a": 1}},
                {"tokenizer": "byte", "shards": [7]},
                {"tokenizer": "byte", "shards": [{"file": "x_train.npy"}]},
                *({"tokenizer": "byte", "shards": [ENTRY | {k: v}]} for k, v in {"tokens": "5", "max_id": -1}.items()),
            ],
        ),
    ],
    ids=lambda content: content[:40],
)
def test_read_meta_reports_any_other_json(tmp_path, content):
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r"meta\.json") as caught:
        read_meta(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
@pytest.mark.parametrize(
    ("name", "fault"),
    [("tiny_train_000001.npy", "a pipe"), ("tiny_train_000001.bin", "not listed"), ("meta.json", "a pipe")],
)
def test_open_data_refuses_a_pipe_which_would_block(tmp_path, name, fault):
    make_folder(tmp_path, "tiny")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is {fault}"):
        open_data(tmp_path, "make")


def test_open_data_reports_missing_and_unfinished_folders_with_the_command_to_run(tmp_path):
    with pytest.raises(UserError, match=r"nowhere does not exist.*python prepare.py"):
        open_data(tmp_path / "nowhere", "python prepare.py stdlib")
    make_folder(tmp_path)
    (tmp_path / "meta.json").rename(tmp_path / "progress.json")
    with pytest.raises(UserError, match="unfinished"):
        open_data(tmp_path, "make")
