"""The layout that README.md draws: imports go only downward, and packages never import commands."""

import ast
import os
import subprocess
import sys

import pytest
from helpers import ROOT

BELOW = {  # what the two modules between the packages may import; import-linter sees only imports in packages
    "model.py": {"formats", "tokens", "tracking", "ops", "configurator", "system"},
    "configurator.py": {"system"},
}
OURS = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}


def test_imports_between_packages_keep_the_contracts():
    pytest.importorskip("importlinter", reason="import-linter is not installed: requirements-dev.txt has it")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, verbose=False))"
    path = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", BELOW)
def test_imports_of_root_modules_go_downward(name):
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.partition(".")[0])
    assert found & OURS <= BELOW[name]


def test_root_holds_at_most_fourteen_python_files():
    """The commands, the model, the configurator: each further file makes the root harder to read."""
    assert len(list(ROOT.glob("*.py"))) <= 14
