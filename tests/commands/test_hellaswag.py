"""hellaswag.py: its report and output file, alone and under torchrun."""

import dataclasses
import json

import pytest
import torch
from helpers import torchrun, write_hellaswag

from formats import checkpoint
from hellaswag import main
from model import GPT, GPTConfig
from tracking.intervals import share_interval


@pytest.fixture
def saved(tmp_path):
    config = GPTConfig(block_size=64, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
    torch.manual_seed(0)
    state = {"model": GPT(config).state_dict(), "model_config": dataclasses.asdict(config)}
    checkpoint.save(tmp_path / "model_00007.pt", state | {"tokenizer": "byte", "step": 7, "val_loss": None})
    return tmp_path / "model_00007.pt"


def test_hellaswag_command_gives_the_same_scores_on_one_and_two_ranks(tmp_path, saved, capsys):
    data = write_hellaswag(tmp_path / "data.jsonl", examples=37)
    flags = [f"--model={saved}", f"--data={data}", "--batch_tokens=400", "--device=cpu", "--dtype=float32"]
    outs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    main([*flags, f"--out={outs[0]}"])
    printed = capsys.readouterr().out
    done = torchrun(2, "hellaswag.py", *flags, f"--out={outs[1]}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(str(outs[1]), str(outs[0])) == printed
    assert outs[0].read_bytes() == outs[1].read_bytes()
    lines = [json.loads(text) for text in outs[0].read_text().splitlines()]
    assert [entry["ind"] for entry in lines] == list(range(37)), "in the file's order"
    assert set(lines[0]) == {"ind", "label", "losses", "lengths", "pred", "pred_norm"}
    correct = sum(entry["pred"] == entry["label"] for entry in lines)
    correct_norm = sum(entry["pred_norm"] == entry["label"] for entry in lines)
    share, share_norm = f"{correct / 37:.4f}", f"{correct_norm / 37:.4f}"
    assert f"acc: {correct}/37={share}  acc_norm: {correct_norm}/37={share_norm}\n" in printed


@pytest.mark.parametrize(
    ("out", "message"), [("taken.jsonl", "already exists: pass --overwrite"), ("taken.jsonl/o", "Not a directory")]
)
def test_hellaswag_command_checks_out_before_scoring(tmp_path, capsys, out, message):
    (tmp_path / "taken.jsonl").touch()
    with pytest.raises(SystemExit) as stopped:
        main([f"--out={tmp_path / out}"])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_interval_equals_wilsons():
    low, high = share_interval(2967 / 10042, 10042)
    assert (low, high) == pytest.approx((0.28662, 0.30445), abs=2e-5)
    assert share_interval(0, 10)[0] == pytest.approx(0)
