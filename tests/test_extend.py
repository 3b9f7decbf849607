"""The examples of docs/extend.md work: all of them are applied to a copy of the repository, which is then used."""

import re
import shutil

import pytest
from helpers import ROOT, run_script

from tracking.runlog import read_log

PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")


def new_files():
    """{path: content} of the page's Python blocks, which begin with the path in a comment."""
    return dict(re.findall(r"^```python\n# (\S+)\n(.*?)^```", PAGE, re.M | re.S))


def edits():
    """[(path, old text, new text)] of the page's diff blocks: runs of - lines, each followed by its + lines."""
    found = []
    for path, block in re.findall(r"^```diff\n--- (\S+)\n(.*?)^```", PAGE, re.M | re.S):
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", block, re.M):
            found.append((path, *(re.sub("^[-+]", "", text, flags=re.M).removesuffix("\n") for text in (old, new))))
    return found


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the repository with every example of the page."""
    copy = tmp_path_factory.mktemp("extended") / "copy"
    skipped = shutil.ignore_patterns(".git", ".venv", "data", "log", "tests", "docs", "notebooks", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=skipped)
    for path, content in new_files().items():
        (copy / path).write_text(content, encoding="utf-8")
    for path, old, new in edits():
        text = (copy / path).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{path} holds {text.count(old)} times: {old}"
        (copy / path).write_text(text.replace(old, new), encoding="utf-8")
    return copy


def run_in(folder, script, *args):
    done = run_script(folder / script, *args, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_extend_examples_cover_every_row_of_the_table():
    assert [path for path, _, _ in edits()] == [
        "model.py",
        *["training/optimizer.py"] * 2,
        *["training/schedule.py"] * 2,
        "text/sources.py",
        *["training/evaluation.py"] * 2,
        *["formats/read.py"] * 2,
    ]
    assert set(new_files()) == {"training/eval_accuracy.py", "formats/npz_file.py"}


def test_extend_examples_train_with_the_new_source_optimizer_schedule_and_evaluation(extended):
    assert "data/helptopics_byte" in run_in(extended, "prepare.py", "helptopics", "--tokenizer=byte")
    settings = "--data_dir=data/helptopics_byte --max_steps=3 --optimizer=sgd --schedule=parabola --accuracy_interval=2"
    output = run_in(extended, "train_gpt2.py", "config/debug.py", *settings.split(), "--sample_interval=0")
    assert "next-token accuracy: " in output
    log = read_log(extended / "log" / "debug")
    assert log["accuracy"].steps.tolist() == [0, 2, 3]
    assert (extended / "log" / "debug" / "plot.png").exists()


def test_extend_example_of_a_model_format_is_read_by_name(extended):
    (extended / "check.py").write_text(
        """import torch
from formats import npz_file
from model import GPT, GPTConfig

model = GPT(GPTConfig(block_size=8, vocab_size=257, n_layer=2, n_head=2, n_embd=16)).eval()
npz_file.write("model.npz", model.config.shape, model.to_tensors())
idx = torch.arange(8)[None]
assert torch.equal(GPT.from_pretrained("model.npz")(idx), model(idx))
"""
    )
    run_in(extended, "check.py")
