"""config.json records what a run ran on: its settings, data, model, environment, and the commit of the code."""

import json
import runpy
import shutil
import subprocess

from helpers import ROOT

from tracking import environment
from train_gpt2 import train
from training import costs


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_config_json_describes_a_run_and_its_earlier_starts(make_run, tmp_path):
    for steps in (2, 4, 6):
        run = make_run(max_steps=steps, resume=steps > 2)
        train(run)
    record = json.loads((tmp_path / "log" / "config.json").read_text())
    assert record["config"]["max_steps"] == 6
    assert record["data"]["source"] == "a test"
    assert record["data"]["tokenizer"] == "byte"
    padding = 127 * 32  # the vocabulary of 257 is padded to 384
    assert record["model"]["parameters"] == sum(p.numel() for p in run.model.parameters()) - padding
    blocks = [p for name, p in run.model.named_parameters() if "wte" not in name and "wpe" not in name]
    assert record["model"]["non_embedding_parameters"] == sum(p.numel() for p in blocks)
    assert record["model"]["flops_per_token"] == costs.flops_per_token(run.model.config, run.cfg.T)
    assert record["environment"]["torch"]
    assert record["environment"]["dtype"] == "float32"
    assert record["environment"]["world_size"] == 1
    assert record["environment"]["from_step"] == 4
    assert [earlier["from_step"] for earlier in record["earlier_starts"]] == [0, 2]
    commit = record["environment"]["git_commit"]
    if (ROOT / ".git").exists():
        assert commit.removesuffix("+changes") == git(ROOT, "rev-parse", "HEAD")
    else:
        assert commit is None


def test_git_commit_is_that_of_the_code_itself(tmp_path):
    def commit_of(folder):
        """Return what git_commit() returns for a copy of this code in `folder`."""
        file = folder / "tracking" / "environment.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(environment.__file__, file)
        return runpy.run_path(str(file))["git_commit"]()

    checkout = tmp_path / "checkout"
    assert commit_of(checkout) is None
    git(checkout, "init", "--quiet")
    git(checkout, "add", ".")
    git(checkout, "commit", "--quiet", "-m", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == head
    (checkout / "untracked.txt").touch()
    assert commit_of(checkout) == head
    assert commit_of(checkout / "vendor" / "copy") is None
    git(checkout, "add", ".")
    assert commit_of(checkout) == head + "+changes"


def test_git_commit_is_none_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.git_commit() is None
