import functools
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from corpus import tokenizer_or_skip

from system.errors import UserError
from text.progress import open_progress
from text.retry import Retry
from text.sources import (
    SOURCES,
    DataSet,
    FetchOptions,
    choose_splits,
    find_download,
    get_source,
    short_name,
    stdlib_files,
)


def test_stdlib_files_are_sorted_and_hold_no_tests():
    folder = sysconfig.get_paths()["stdlib"]
    files = [Path(path).relative_to(folder) for path in stdlib_files()]
    assert files == sorted(files, key=Path.as_posix)
    assert {Path("argparse.py"), Path("json/decoder.py"), Path("pydoc_data/topics.py")} <= set(files)
    assert not {"test", "tests", "site-packages", "__pycache__"} & {part for file in files for part in file.parts}


def test_get_source_takes_names_before_files(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    options = FetchOptions(tmp_path, None, Retry(1, ""))
    source = get_source(str(tmp_path))
    assert source.local
    assert source.find(options) == {"all": [str(tmp_path / "a.txt")]}
    assert get_source("shakespeare") is SOURCES["shakespeare"]
    with pytest.raises(UserError, match="shakespear: no such file or folder"):
        get_source("shakespear").find(options)


def test_short_name_is_a_name_or_a_files_stem(tmp_path):
    (tmp_path / "my book.txt").touch()
    names = [short_name(source) for source in ("stdlib", str(tmp_path / "my book.txt"), "/")]
    assert names == ["stdlib", "my_book", "text"]
    (tmp_path / "a.jsonl.gz").touch()
    assert short_name(str(tmp_path / "a.jsonl.gz")) == "a"
    assert short_name("corpus/*.jsonl") == "corpus__.jsonl"


@pytest.mark.parametrize(
    ("name", "found", "wanted", "chosen"),
    [
        ("hf:a/b", "train validation test", "val train", {"val": "validation", "train": "train"}),
        ("hf:a/b:c", "train validation test", "test", {"test": "test"}),
        ("hf:a/b", "train test", "val train", {"all": "train"}),
        ("hf:a/b", "train", "val", {"all": "train"}),
        ("hf:a/b@test", "train test", "val train", {"all": "test"}),
        ("hf:a/b", "train test", "val", "hf:a/b has no split 'validation'; it has train, test: name one with @SPLIT"),
        ("hf:a/b:c@dev", "train", "val", "hf:a/b:c@dev has no split 'dev'; it has train"),
    ],
)
def test_choose_splits_of_a_data_set(name, found, wanted, chosen):
    data_set = DataSet.parse(name)
    if isinstance(chosen, dict):
        assert choose_splits(data_set, found.split(), tuple(wanted.split())) == chosen
        return
    with pytest.raises(UserError, match=chosen):
        choose_splits(data_set, found.split(), tuple(wanted.split()))


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:a/b:", "hf:a/b@", "hf:a/b@x:y", "hf:a/../b"])
def test_data_set_parse_refuses_other_forms(name):
    with pytest.raises(UserError, match=f"^{name}: expected hf:OWNER/NAME"):
        DataSet.parse(name)


def test_find_download_tries_the_mirror_first(tmp_path, capsys):
    urls = ("http://127.0.0.1:9/original",)  # nothing listens on port 9
    find = functools.partial(find_download, "a.txt", urls, "0" * 64)
    with pytest.raises(UserError, match=r"a\.txt could not be fetched from 2 places: .*--mirror URL"):
        find(FetchOptions(tmp_path, "http://127.0.0.1:9/mirror", Retry(1, "")))
    assert [line.split("/")[-1] for line in capsys.readouterr().out.splitlines()[::2]] == ["mirror", "original"]


def test_shakespeare_with_gpt2_is_written_exactly_as_llmc_does(tmp_path):
    tokenizer = tokenizer_or_skip("gpt2")
    source = Path(os.environ.get("GPT2_TEST_DATA", "nowhere"), "tinyshakespeare.txt")
    if not source.exists():
        pytest.skip("GPT2_TEST_DATA names no folder with tinyshakespeare.txt")
    request = {"source": "shakespeare", "tokenizer": "gpt2", "format": "bin"}
    SOURCES["shakespeare"].write["gpt2"](open_progress(tmp_path, request), [source])
    ids = []
    sections = source.read_text().split("\n\n")
    for i, section in enumerate(sections):
        ids += [50256, *tokenizer.encode(section + ("\n\n" if i < len(sections) - 1 else ""))]
    for name, expected in (("val", ids[:32768]), ("train", ids[32768:])):
        data = (tmp_path / f"tiny_shakespeare_{name}.bin").read_bytes()
        assert np.frombuffer(data[1024:], np.uint16).tolist() == expected
    assert len(ids) == 32_768 + 305_260
