"""harness.py: its mistakes, and its results on local tasks, equal to the harness's own model of the exported folder."""

import importlib.util
import sys

import pytest
from models import save_checkpoint, small_gpt

from harness import main


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--tasks: expected the harness's names"),
        (["--tasks=piqa", "--limit=0"], "limit = 0: expected at least 1"),
        (["--tasks=piqa", "--out=/dev/null/x"], "Not a directory"),
    ],
)
def test_harness_command_refuses_with_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        main(flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_harness_command_names_the_package_that_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(SystemExit):
        main(["--tasks=piqa"])
    assert ": pip install lm_eval==" in capsys.readouterr().err


TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
test_split: validation
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: 1
metric_list: [{metric: acc}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed (optional)")
def test_harness_command_scores_a_local_task(tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "{i} and", "choices": ["one", "two"]}}\n' for i in range(5)))
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine", data=data) + CHOICE)
    model = save_checkpoint(tmp_path / "model.pt", small_gpt(vocab_size=257))
    main([f"--model={model}", "--tasks=mine", f"--include_path={tmp_path}", f"--out={tmp_path / 'o.json'}"])
    printed = capsys.readouterr().out
    assert "|mine " in printed
    assert (tmp_path / "o.json").exists()
    with pytest.raises(SystemExit):
        main([f"--model={model}", "--tasks=mime", f"--include_path={tmp_path}"])
    assert "--tasks mime: no such task in the harness; did you mean mine" in capsys.readouterr().err
