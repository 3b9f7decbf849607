"""How to install an optional package: the versions are in pyproject.toml."""

import shlex
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def install_command(extra):
    """The command that installs the packages of an `extra` of pyproject.toml: `pip install lm_eval==0.4.13`."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return shlex.join(["pip", "install", *project["optional-dependencies"][extra]])
