"""The course in docs/course: its commands and snippets are valid, and each ablation changes what it says."""

import ast
import copy
import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers import ROOT, write_corpus
from test_docs import command_lines

import sample
import sweep
from configurator import configure
from docs.course import ablations
from docs.course.ablations import ABLATIONS, Settings, train_changed
from formats import checkpoint
from system.errors import UserError
from training import evaluation
from training.config import TrainConfig

COURSE = ROOT / "docs" / "course"
LESSONS = sorted(COURSE.glob("[01]*.md"))
PARSERS = {
    "train_gpt2.py": lambda words: configure(TrainConfig, words),
    "sweep.py": sweep.make_grid,
    "sample.py": lambda words: configure(sample.Settings, words),
    "docs.course.ablations": lambda words: configure(Settings, words, positional="names"),
}


def parsed_commands():
    """(program, its arguments) of the commands in the lessons for which there is a parser."""
    lines = [line for page in LESSONS for line in command_lines(page.read_text(encoding="utf-8"))]
    words = [shlex.split(re.sub(r"^python (-m )?", "", line)) for line in lines]
    return [(program, arguments) for program, *arguments in words if program in PARSERS]


@pytest.mark.parametrize(("program", "arguments"), parsed_commands(), ids=lambda words: "".join(words)[:60])
def test_course_commands_parse(program, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    PARSERS[program](arguments)


def test_course_has_commands_of_every_parser():
    assert {program for program, _ in parsed_commands()} == set(PARSERS)


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_course_snippets_parse_and_import_what_exists(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_course_index_lists_every_lesson():
    index = (COURSE / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d\d_\w+\.md)\)", index) == [page.name for page in LESSONS]
    assert len(LESSONS) == 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{name: the `Run`} of every ablation, after two updates on a tiny corpus."""
    folder = tmp_path_factory.mktemp("ablations")
    data_dir = str(write_corpus(folder / "data"))
    settings = Settings(data_dir=data_dir, log_dir=str(folder / "log"), max_steps=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(evaluation, "plot_runs", lambda *arguments, **plan: None)  # takes longer than the updates
        return {name: train_changed(name, settings) for name in ABLATIONS}


def test_ablations_train_different_models_and_leave_no_checkpoint(runs):
    losses = [run.state.val_loss for run in runs.values()]
    assert all(run.state.step == 2 for run in runs.values())
    assert len(set(losses)) == len(ABLATIONS)
    assert [run.cfg.log_dir for run in runs.values() if checkpoint.list_checkpoints(run.cfg.log_dir)] == []


def sees_later_tokens(model):
    """Whether a change of the last token changes an earlier position's logits."""
    x = torch.arange(16)[None]
    changed = x.clone()
    changed[0, -1] = 99
    with torch.no_grad():
        return not torch.equal(model(x)[0, :-1], model(changed)[0, :-1])


def test_ablations_change_what_they_say(runs):
    models = {name: run.model for name, run in runs.items()}
    assert [name for name, model in models.items() if sees_later_tokens(model)] == ["no_mask"]
    assert [name for name, model in models.items() if not model.transformer.wpe.weight.any()] == ["no_positions"]
    untied = [name for name, model in models.items() if model.lm_head.weight is not model.transformer.wte.weight]
    assert untied == ["untied_head"]
    plain_sgd = [name for name, run in runs.items() if isinstance(run.optimizers.optimizers[0], torch.optim.SGD)]
    assert plain_sgd == ["sgd", "sgd_at_adamw_rate"]
    head = models["untied_head"].lm_head.weight
    assert any(head is p for p in runs["untied_head"].optimizers.parameters())


def test_ablation_without_residual_replaces_the_stream(runs):
    """Without attention's output a block ignores its input; without the MLP's it returns zeros."""
    x, other = torch.randn(2, 1, 4, 64, generator=torch.Generator().manual_seed(0))

    def block_without(name, part):
        block = copy.deepcopy(runs[name].model).transformer.h[0]
        for p in block.get_submodule(part).c_proj.parameters():
            p.data.zero_()
        return block

    for name, replaces in (("baseline", False), ("no_residual", True)):
        with torch.no_grad():
            block = block_without(name, "attn")
            assert torch.equal(block(x), block(other)) == replaces
            assert block_without(name, "mlp")(x).any() != replaces


def test_ablations_refuse_an_unknown_name(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        ablations.main(["no_mlp"])
    assert stop.value.code == 2
    assert "ablation no_mlp: expected one of baseline, no_residual" in capsys.readouterr().err


def test_ablations_refuse_folders_that_hold_runs(runs):
    log_dir = str(Path(runs["relu"].cfg.log_dir).parent)
    with pytest.raises(UserError, match="/relu already holds a run: add --overwrite"):
        Settings(names=("relu",), log_dir=log_dir).check()
    Settings(names=("relu",), log_dir=log_dir, overwrite=True).check()
