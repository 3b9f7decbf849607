import numpy as np
import pytest
from helpers import write_corpus

from system.errors import UserError
from tokens.inspection import inspect
from tokens.shards import shard_name, write_meta, write_shard


def byte_shard(folder, index, text):
    return write_shard(folder / shard_name("a", index, ".npy"), np.array([256, *text.encode()], np.uint16))


def test_inspect_prints_the_content_and_finds_a_flipped_bit(tmp_path, capsys):
    entries = [byte_shard(tmp_path, 0, "end"), byte_shard(tmp_path, 1, "some text, " * 450)]
    write_meta(tmp_path, {"tokenizer": "byte", "source": "s", "shards": entries})
    inspect(tmp_path)
    printed = capsys.readouterr().out
    assert "train: 1 shard, 4,951 tokens, 1 document, 4,951.0 tokens each" in printed
    assert "byte tokenizer" in printed
    assert "'<|endoftext|>some text, some" in printed
    assert "matches its checksums" in printed
    path = tmp_path / "a_train_000001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a_train_000001\.npy has changed since it was written"):
        inspect(tmp_path)


@pytest.mark.parametrize("tokenizer", ["byte", "gpt2"])
def test_inspect_reports_ids_above_the_vocabulary(tmp_path, capsys, tokenizer):
    entries = [write_shard(tmp_path / shard_name("a", i, ".npy"), np.full(9, 60_000, np.uint16)) for i in range(2)]
    write_meta(tmp_path, {"tokenizer": tokenizer, "source": "s", "shards": entries})
    with pytest.raises(UserError, match=rf"holds token id 60000, but the {tokenizer} vocabulary ends at"):
        inspect(tmp_path)
    assert "train begins with ids [60000, " in capsys.readouterr().out


def test_inspect_reads_shards_made_elsewhere(tmp_path, capsys):
    for name in ("x_train.bin", "x_val.bin"):
        header = np.zeros(256, "<i4")
        header[:3] = 20240520, 1, 3
        (tmp_path / name).write_bytes(header.tobytes() + np.array([50256, 1, 50256], "<u2").tobytes())
    inspect(tmp_path)
    printed = capsys.readouterr().out
    assert "gpt2 tokenizer" in printed
    assert "3 tokens, 2 documents, 1.5 tokens each" in printed
    assert "made elsewhere" in printed


def test_inspect_verifies_masks(tmp_path, capsys):
    folder = write_corpus(tmp_path / "data", masked=True)
    inspect(folder)
    assert "conversations in windows of 32 tokens, of which 5" in capsys.readouterr().out  # 50 to 59 percent count
    mask = folder / "tiny_train_000002.mask"
    mask.write_bytes(b"\2" + mask.read_bytes()[1:])
    with pytest.raises(UserError, match=r"tiny_train_000002\.mask has changed"):
        inspect(folder)
    mask.write_bytes(mask.read_bytes()[1:])
    with pytest.raises(UserError, match=r"tiny_train_000002\.mask has [\d,]+ bytes, its shard [\d,]+ tokens"):
        inspect(folder)
    mask.unlink()
    with pytest.raises(UserError, match=r"tiny_train_000002\.mask"):
        inspect(folder)
