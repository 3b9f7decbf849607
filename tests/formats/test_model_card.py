"""A model card states what the run's files say, and nothing where they say nothing."""

import json

import pytest
import yaml
from models import save_checkpoint, small_gpt

from formats import model_card
from formats.model_card import card_files
from formats.model_file import ModelFile
from formats.read import read
from tracking.intervals import share_interval
from tracking.runlog import RunLog

SHAPE = {"block_size": 32, "vocab_size": 257, "n_layer": 2, "n_head": 4, "n_embd": 32}
CONFIG = {
    **{"total_batch_size": 512, "T": 32, "max_steps": 20, "optimizer": "adamw", "beta1": 0.9, "beta2": 0.95},
    **{"weight_decay": 0.1, "grad_clip": 1.0, "schedule": "cosine", "max_lr": 1e-3, "min_lr": 1e-4, "warmup_steps": 5},
    **{"init_from": "scratch", "data_dir": "data/mine", "dropout": 0.0, "hellaswag_limit": None},
}
RECORD = {
    "config": CONFIG,
    "data": {"source": "/home/someone/book.txt", "tokenizer": "byte", "train": 90000, "val": 5000},
    "model": SHAPE,
    "environment": {"device": "cpu", "cpu": "A CPU", "threads": 2, "world_size": 1, "dtype": "float32"},
}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Most tests are not about the plot, which takes a second."""
    monkeypatch.setattr(model_card, "draw_curves", lambda log_dir: b"PNG")


def write_run(folder, record=RECORD, step=10, chat=False):
    """A run of 20 steps that was validated every 10, with a checkpoint at `step`; returns its `ModelFile`."""
    path = save_checkpoint(folder / f"model_{step:05d}.pt", small_gpt(**SHAPE), step=step)
    (folder / "config.json").write_text(json.dumps(record))
    log = RunLog(folder)
    for i in range(20):
        if i % 10 == 0:
            log.write(i, val=3.0 - i / 100, val_bpb=2.0 - i / 100, hella=0.25 + i / 1000)
        log.write(i, train=3.0, dt_ms=60_000.0)
    log.write(20, val=2.5)
    log.close()
    return read(path)


def rows(card):
    """{title: text} of the tables of a card."""
    cells = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def card_of(model_file, name="me/tiny"):
    return card_files(model_file, name)["README.md"].decode()


def test_card_states_the_values_of_the_log_at_the_checkpoints_step(tmp_path):
    files = card_files(write_run(tmp_path), "me/tiny")
    card = files["README.md"].decode()
    found = rows(card)
    assert "validation loss | 2.9000 nats per token |" in card
    assert "validation loss | 1.9000 bits per byte |" in card
    low, high = share_interval(0.26, 10042)
    assert found["HellaSwag, acc_norm"] == f"0.2600 (95% interval {low:.4f} to {high:.4f}, 10,042 examples)"
    assert found["tokens seen"] == "5,120"
    assert found["its tokens"] == "90,000 to train, 5,000 to validate"
    assert found["time in training steps"] == "10 min"
    assert found["hardware"] == "A CPU, 2 threads"
    assert found["learning rate"] == "up to 0.001 in 5 steps, then cosine to 0.0001 at step 20"
    assert files["curves.png"] == b"PNG"
    assert "(curves.png)" in card


def test_draw_curves_returns_a_png(tmp_path, monkeypatch):
    write_run(tmp_path)
    monkeypatch.undo()
    assert model_card.draw_curves(tmp_path).startswith(b"\x89PNG")


def test_card_shows_no_folders_of_the_machine(tmp_path):
    card = card_of(write_run(tmp_path))
    assert rows(card)["data"] == "book.txt"
    assert "/home" not in card
    assert str(tmp_path) not in card


def test_card_names_the_step_of_an_older_evaluation(tmp_path):
    found = rows(card_of(write_run(tmp_path, step=20)))
    assert found["HellaSwag, acc_norm"].endswith("10,042 examples), after 10 steps")
    assert found["tokens seen"] == "10,240"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"hellaswag_limit": 40}, "0.2600 (95% interval 0.1495 to 0.4126, 40 examples)"),
        ({"hellaswag_data": "/data/some.jsonl"}, "0.2600 on some.jsonl"),
    ],
)
def test_card_has_an_interval_where_the_number_of_examples_is_known(tmp_path, settings, text):
    record = RECORD | {"config": CONFIG | settings}
    assert rows(card_of(write_run(tmp_path, record)))["HellaSwag, acc_norm"] == text


def test_card_header_is_what_the_hub_reads(tmp_path):
    _, header, text = card_of(write_run(tmp_path)).split("---\n", 2)
    expected = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["gpt2"]}
    assert yaml.safe_load(header) == expected, "neither a language nor a licence is known"
    assert text.startswith("\n# tiny\n")


@pytest.mark.parametrize(
    "record", [{}, RECORD | {"model": SHAPE | {"n_layer": 3}}, {k: v for k, v in RECORD.items() if k != "data"}]
)
def test_card_without_the_models_own_config_describes_the_model_alone(tmp_path, record):
    files = card_files(write_run(tmp_path, record), "me/tiny")
    assert set(files) == {"README.md"}
    card = files["README.md"].decode()
    assert "2 layers of width 32, 4 heads, a context of 32 tokens" in card
    assert rows(card) == {}
    assert "trained" not in card


def test_card_of_a_run_that_knows_little_leaves_its_rows_out(tmp_path):
    record = RECORD | {"config": {"total_batch_size": 512}, "data": {"tokenizer": "byte"}, "environment": {"a": 1}}
    card = card_of(write_run(tmp_path, record))
    assert set(rows(card)) >= {"tokens seen", "time in training steps"}
    assert not {"data", "optimizer", "hardware", "learning rate"} & set(rows(card))
    assert "None" not in card


def test_card_of_a_chat_model_uses_messages():
    card = card_of(ModelFile(SHAPE, "byte", "FILE", dict, chat=True))
    assert '[{"role": "user", "content": ' in card
    assert "tuned on conversations" in card
