import os
import subprocess
import sys

import pytest
from corpus import parquet_bytes
from hub_server import COMMIT, serve
from huggingface_hub import constants

from system.errors import UserError
from text import hub

REPO = "owner/texts"
CARD = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: small
  data_files: [{split: train, path: small/*}]
---
"""
FILES = {"README.md": CARD, "data/x/0.parquet": parquet_bytes(["a"]), "small/1.parquet": parquet_bytes(["b"])}
LIST = """
from pathlib import Path
from system.errors import UserError
from text import hub
from text.retry import Retry
for arguments in [("owner/texts", "small"), ("owner/texts", "smal"), ("owner/texts", None, "test"), ("no/texts", None)]:
    try:
        print(Retry(0, "").call(hub.list_data_files, *arguments))
    except UserError as error:
        print(error)
file = hub.RangeReader(hub.list_data_files("owner/texts", "small")[0][0])
file.seek(-4, 2)
print(file.read())
from text.sources import FetchOptions, get_source
for name in ("hf:owner/texts:small", "hf:owner/texts:small@test"):
    try:
        print({split: [Path(p).read_bytes()[:4] for p in paths] for split, paths in
            get_source(name).find(FetchOptions(None, None, Retry(0, ""))).items()})
    except UserError as error:
        print(error)
"""


def test_hub_file_parse_splits_the_url():
    file = hub.HubFile.parse("hf://datasets/owner/texts@abc/data/x/0.parquet")
    assert file == ("owner/texts", "abc", "data/x/0.parquet")


def test_list_data_files_reports_unknown_names_and_range_reader_reads_only_its_range(tmp_path):
    with serve(REPO, FILES) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)}
        output = subprocess.check_output([sys.executable, "-c", LIST], env=env, text=True, timeout=60)
    found, subset, split, repo, tail, files, unknown_split = output.splitlines()
    size = len(FILES["small/1.parquet"])
    assert found == f"[('hf://datasets/owner/texts@{COMMIT}/small/1.parquet', {size})]"
    assert "'smal'" in subset
    assert "'small'" in subset
    assert split == "owner/texts has no split 'test' in its default subset"
    assert "no/texts" in repo
    assert "the hub answers 404; check the name" in repo
    assert tail == "b'PAR1'"
    assert any(span == f"bytes={size - 4}-{size - 1}" for *_, span in server.log)
    assert files == "{'all': [b'PAR1']}"
    assert (
        unknown_split == "hf:owner/texts:small@test has no split 'test'; it has train: name one with @SPLIT at the end"
    )


def test_list_cached_files_reads_the_data_set_card_and_makes_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="owner/texts is not in the cache"):
        hub.list_cached_files(REPO, "small", "train")
    folder = tmp_path / "datasets--owner--texts"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for name, content in FILES.items():
        path = folder / "snapshots" / COMMIT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    assert hub.list_cached_splits(REPO, "small").keys() == {"train"}
    for subset, name in ((None, "data/x/0.parquet"), ("small", "small/1.parquet")):
        expected = [(f"hf://datasets/owner/texts@{COMMIT}/{name}", len(FILES[name]))]
        assert hub.list_cached_files(REPO, subset, "train") == expected
    with pytest.raises(UserError, match="no subset 'smal'; it has default, small"):
        hub.list_cached_files(REPO, "smal", "train")


def test_locate_downloads_nothing_when_offline(monkeypatch):
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    monkeypatch.setattr(hub, "cached_copy", lambda url: None)
    with pytest.raises(UserError, match=r"a\.parquet is not in the cache"):
        hub.locate("hf://datasets/x/y@main/a.parquet", stream=True)
    assert hub.locate("folder/a.parquet") == "folder/a.parquet"
