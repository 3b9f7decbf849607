"""Write requirements.txt and requirements-dev.txt from pyproject.toml: python scripts/write_requirements.py"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADER = "# From pyproject.toml, by python scripts/write_requirements.py"


def requirements():
    """{file: its lines}: what the commands import, and what the tests and linters need besides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, dev = project["optional-dependencies"], []
    for line in extras["dev"]:
        name, _, extra = line.removesuffix("]").partition("[")
        dev += extras[extra] if name == project["name"] else [line]
    return {
        "requirements.txt": [HEADER, *project["dependencies"]],
        "requirements-dev.txt": [HEADER, "-r requirements.txt", *dev],
    }


if __name__ == "__main__":
    for file, lines in requirements().items():
        (ROOT / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
