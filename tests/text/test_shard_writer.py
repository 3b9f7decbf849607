import errno
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from corpus import LoadedTexts

from system.errors import UserError
from text.encoding import tokenize
from text.progress import open_progress
from text.shard_writer import Item, format_bytes, training_command, write_shards
from tokens.shards import open_data, write_shard

REQUEST = {"source": "s", "tokenizer": "byte", "format": "npy", "val": 0.1, "files": "f"}
TEXTS = [chr(97 + i) * (10 + 7 * i) for i in range(26)]


def make_items(split=None):
    return [Item([i], split, 1 / len(TEXTS), LoadedTexts([text])) for i, text in enumerate(TEXTS)]


def fill(out, request=REQUEST, shard_tokens=500, **options):
    """Write TEXTS to `out`, or the rest of them; returns `meta.json`."""
    progress = open_progress(out, request, **options)
    progress.shard_tokens = shard_tokens
    first = 0 if progress.position is None else progress.position[0]
    return write_shards(progress, make_items()[first:], 0, "x")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "meta.json"}


def fail_after(function, calls):
    """`function`, which raises after this number of calls."""
    counter = itertools.count()

    def call(*args, **kwargs):
        if next(counter) >= calls:
            raise RuntimeError("interrupted")
        return function(*args, **kwargs)

    return call


def test_write_shards_fills_shards_of_equal_size_and_meta_json(tmp_path):
    meta = fill(tmp_path)
    data = open_data(tmp_path, "make")
    assert data.meta | {"seconds": 0} == meta | {"format_version": 1, "seconds": 0}
    ids = np.concatenate([*data.splits["val"], *data.splits["train"]])
    assert ids.tolist() == [i for text in TEXTS for i in [256, *text.encode()]]
    assert data.splits["val"].lengths.tolist() == [500]
    assert set(data.splits["train"].lengths[:-1]) == {500}
    assert (meta["documents"], meta["tokens"], meta["bytes"]) == (26, len(ids), len(ids) - 26)


@pytest.mark.parametrize("interrupt_at", [5, 13, 25])
def test_write_shards_continues_an_interrupted_folder_to_the_same_bytes(tmp_path, monkeypatch, interrupt_at):
    with monkeypatch.context() as patch:
        patch.setattr("text.shard_writer.tokenize", fail_after(tokenize, interrupt_at))
        with pytest.raises(RuntimeError):
            fill(tmp_path / "out", shard_tokens=100)
    assert not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(UserError, match="unfinished"):
        open_data(tmp_path / "out", "make")
    metas = [fill(tmp_path / name, shard_tokens=100) | {"seconds": 0} for name in ("out", "undisturbed")]
    assert metas[0] == metas[1]
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_progress_file_is_written_before_the_first_shard(tmp_path, monkeypatch):
    def write_and_fail(*args):
        write_shard(*args)
        raise RuntimeError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("text.shard_writer.write_shard", write_and_fail)
        with pytest.raises(RuntimeError):
            fill(tmp_path)
    with pytest.raises(UserError, match="unfinished"):
        open_data(tmp_path, "make")


def test_open_progress_reports_what_another_request_has_left(tmp_path):
    fill(tmp_path)
    before = contents(tmp_path)
    assert open_progress(tmp_path, REQUEST) is None
    for change, message in (
        ({"val": 0.2}, r"already holds shards of s with val 0\.1; give another --out, or --overwrite"),
        ({"files": "g"}, "shards of s, whose files have changed since"),
        ({"source": "t", "val": 0.2}, "already holds shards of s; "),
    ):
        with pytest.raises(UserError, match=message):
            open_progress(tmp_path, REQUEST | change)
    assert contents(tmp_path) == before
    meta = json.loads((tmp_path / "meta.json").read_text())
    del meta["request"]
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="made elsewhere"):
        open_progress(tmp_path, REQUEST)


def test_open_progress_reports_shards_made_elsewhere_and_files(tmp_path):
    np.save(tmp_path / "x_train_000001.npy", np.zeros(9, np.uint16))
    with pytest.raises(UserError, match="made elsewhere"):
        open_progress(tmp_path, REQUEST)
    with pytest.raises(UserError, match="is a file, expected a folder"):
        open_progress(tmp_path / "x_train_000001.npy", REQUEST)


def test_overwrite_deletes_shards_and_nothing_else(tmp_path):
    fill(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    fill(tmp_path, REQUEST | {"format": "bin"}, shard_tokens=2000, overwrite=True)
    expected = ["meta.json", "notes.md", "x_train_000001.bin", "x_val_000000.bin"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected


def fill_failing(out, calls, **options):
    """Fill `out` again with --overwrite, and fail after this number of pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("text.shard_writer.tokenize", fail_after(tokenize, calls))
        with pytest.raises(RuntimeError):
            fill(out, REQUEST | {"val": 0.2}, overwrite=True, **options)


def test_overwrite_keeps_the_old_shards_until_the_first_new_one_is_ready(tmp_path):
    fill(tmp_path)
    before = contents(tmp_path)
    fill_failing(tmp_path, 3, shard_tokens=100)
    assert contents(tmp_path) == before
    open_data(tmp_path, "make")
    fill_failing(tmp_path, 10, shard_tokens=100)
    assert not (tmp_path / "meta.json").exists()
    fill(tmp_path, REQUEST | {"val": 0.2}, shard_tokens=100)  # continues
    fill(tmp_path / "undisturbed", REQUEST | {"val": 0.2}, shard_tokens=100)
    shards = [{p.name: p.read_bytes() for p in folder.glob("*.npy")} for folder in (tmp_path, tmp_path / "undisturbed")]
    assert shards[0] == shards[1]


@pytest.mark.parametrize("name", ["progress.json", "meta.json", "x_val_000000.npy"])
def test_overwrite_that_is_killed_while_it_deletes_goes_on_when_repeated(tmp_path, monkeypatch, name):
    request = REQUEST | {"val": 0.2}
    fill(tmp_path / "out")
    unlink = Path.unlink

    def unlink_and_fail(path, missing_ok=False):
        if name in ("progress.json", path.name):
            raise RuntimeError("killed")
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_and_fail)
        with pytest.raises(RuntimeError):
            fill(tmp_path / "out", request, shard_tokens=2000, overwrite=True)
    left = (tmp_path / "out" / "meta.json").exists()
    if left:  # the old folder is whole
        assert open_data(tmp_path / "out", "make").meta["request"] == REQUEST
    metas = [fill(tmp_path / n, request, shard_tokens=2000, overwrite=left) | {"seconds": 0} for n in ("out", "new")]
    assert metas[0] == metas[1]
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_overwrite_keeps_the_old_shards_if_the_text_is_too_short(tmp_path):
    fill(tmp_path)
    before = contents(tmp_path)
    progress = open_progress(tmp_path, REQUEST, overwrite=True)
    with pytest.raises(UserError, match="too short: 4 tokens for validation"):
        write_shards(progress, [Item([0], None, 1, LoadedTexts(["abc"]))], 0, "x")
    progress = open_progress(tmp_path, REQUEST, overwrite=True)
    with pytest.raises(UserError, match="too short: 0 tokens for validation"):
        write_shards(progress, [], 0, "x")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("calls", range(9))
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_write_shards_reports_a_disk_that_fails_and_continues(tmp_path, monkeypatch, code, calls):
    """The disk fails at the write of this number: plan, shards and progress in turn, `meta.json`."""

    counter = itertools.count()

    def fail(fd, sync=os.fsync):
        if next(counter) >= calls:
            raise OSError(code, os.strerror(code))
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=r"no space left|cannot be written"):
            fill(tmp_path / "out", shard_tokens=1500)
    fill(tmp_path / "out", shard_tokens=1500)
    fill(tmp_path / "undisturbed", shard_tokens=1500)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize(
    "damage",
    [
        {"request": 7},
        {"request": {"source": []}},
        {"shards": [7]},
        {"shards": [{"file": "x", "tokens": "9", "max_id": 1, "sha256": ""}]},
        {"position": 7},
        {"skip": "a"},
        {"seconds": None},
        {"shard_tokens": 2**62},
        {"unknown": 1},
    ],
)
def test_open_progress_reports_a_damaged_progress_file(tmp_path, damage):
    progress = open_progress(tmp_path, REQUEST)
    progress.save()
    values = json.loads(progress.path.read_text())
    progress.path.write_text(json.dumps(values | damage))
    with pytest.raises(UserError, match=r"progress\.json"):
        open_progress(tmp_path, REQUEST)
    assert fill(tmp_path, overwrite=True)["documents"] == 26


def test_training_command_names_the_recipe_for_a_small_corpus():
    metas = [{"shards": [{"file": "x_val", "tokens": 10**9}, {"file": "x_train", "tokens": n}]} for n in (9, 10**8)]
    assert training_command(metas[0], "my data") == "python train_gpt2.py config/own_text.py --data_dir 'my data'"
    assert training_command(metas[1], "out") == "python train_gpt2.py --data_dir out"


def test_write_shards_reports_a_split_shorter_than_one_window(tmp_path):
    with pytest.raises(UserError, match="s is too short: 0 tokens for training"):
        fill(tmp_path, shard_tokens=10_000)
    assert list(tmp_path.glob("*.npy")) == []


def test_format_bytes_chooses_the_unit():
    assert [format_bytes(n) for n in (500, 2e6, 1.5e9)] == ["0.5 kB", "2.0 MB", "1.5 GB"]
