"""All versions are in pyproject.toml: requirements*.txt repeat it, and messages name its pins."""

import re
import runpy
import tomllib

import pytest
from helpers import ROOT

from system.packages import install_command

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines_of(file):
    return [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def test_requirements_files_list_the_packages_of_pyproject():
    assert lines_of("requirements.txt") == PROJECT["dependencies"]
    first, *dev = lines_of("requirements-dev.txt")
    assert first == "-r requirements.txt"
    named = {f"{PROJECT['name']}[{extra}]": packages[0] for extra, packages in EXTRAS.items()}
    assert dev == [named.get(line, line) for line in EXTRAS["dev"]]


def test_write_requirements_writes_the_files_that_are_there():
    for file, lines in runpy.run_path(ROOT / "scripts" / "write_requirements.py")["requirements"]().items():
        assert (ROOT / file).read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name != "dev"])
def test_install_command_pins_the_version(extra):
    assert re.fullmatch(r"pip install (\w+)==[\d.]+", install_command(extra))
