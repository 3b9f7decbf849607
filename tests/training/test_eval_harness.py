"""The harness during training: its metrics in the log, and nothing else changed; a stand-in takes lm_eval's place."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from inference import harness
from tracking.runlog import read_log
from train_gpt2 import train

pytestmark = pytest.mark.usefixtures("empty_plots")


class TaskManager:
    all_tasks = ("sums", "other")

    def __init__(self, include_path):
        pass

    def load(self, names):
        random.seed(0)


def simple_evaluate(model, tasks, task_manager, limit, num_fewshot, log_samples, bootstrap_iters):
    """Seeds all generators, as the harness does, and scores `limit` continuations."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    answers = model._loglikelihood_tokens([(None, [49, 32], [50 + i, 46]) for i in range(limit)])
    values = {"alias": "a name", "log likelihood,none": answers[0][0], "acc,strict": answers[0][1]}
    return {"results": {tasks[0]: values | {"log likelihood_stderr,none": 0.1, "acc_stderr,strict": "N/A"}}}


@pytest.fixture
def stand_in(monkeypatch):
    modules = {
        "lm_eval": SimpleNamespace(simple_evaluate=simple_evaluate),
        "lm_eval.tasks": SimpleNamespace(TaskManager=TaskManager),
        "lm_eval.api.model": SimpleNamespace(TemplateLM=object),
        "lm_eval.models.utils": SimpleNamespace(normalize_gen_kwargs=None),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    yield
    sys.modules.pop("inference.lm_eval_adapter", None)  # the one that imported the stand-in


SETTINGS = {"harness_tasks": "sums", "harness_interval": 2, "harness_limit": 3, "dropout": 0.1}


def test_harness_scores_are_logged_and_change_nothing_in_training(make_run, stand_in, capsys):
    plain = make_run(dropout=0.1)
    train(plain)
    expected = read_log(plain.cfg.log_dir)
    run = make_run(**SETTINGS)
    train(run)
    log = read_log(run.cfg.log_dir)
    assert log["train"].values.tolist() == expected["train"].values.tolist()
    assert log["sums/log_likelihood"].steps.tolist() == [0, 2, 4, 5]
    assert set(log) - set(expected) == {"sums/log_likelihood", "sums/acc/strict"}
    with torch.no_grad():
        logits = run.model.eval()(torch.tensor([[49, 32, 50]], device=run.rt.device))[0].double()
    logprob = logits.log_softmax(-1)[[1, 2], [50, 46]].sum().item()
    assert log["sums/log_likelihood"].values[-1] == pytest.approx(logprob, abs=1e-4)
    assert "harness: sums/log_likelihood -" in capsys.readouterr().out


def test_harness_leaves_all_random_states(make_run, stand_in):
    run = make_run(**SETTINGS)
    evaluation = next(evaluation for evaluation in run.evaluations if evaluation.name == "harness")
    random.seed(5)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    harness.fetch(evaluation.tasks)
    evaluation.measure(run)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_harness_that_is_not_available_is_named_and_left_out(make_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    run = make_run(**SETTINGS)
    assert "without harness: lm_eval is not installed" in capsys.readouterr().out
    assert "harness" not in [evaluation.name for evaluation in run.evaluations]


def test_harness_task_that_does_not_exist_is_named(make_run, stand_in, capsys):
    make_run(**SETTINGS | {"harness_tasks": "sums,suns"})
    assert (
        "without harness: harness_tasks suns: no such task in the harness; did you mean sums?"
        in capsys.readouterr().out
    )
