"""The commands, files, flags, links and error messages that README.md and docs/ mention exist."""

import ast
import importlib
import re
import shlex
import tomllib
import typing

import pytest
from helpers import ROOT
from torch.distributed.run import get_args_parser

from system.foreign_flags import FOREIGN_FLAGS

PAGES = [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
FOREIGN = {"--torch-backend", "--limit", "--tasks", "--include_path", "--signal"}  # of uv, the harness and Slurm
FOREIGN |= {"--n_ctx"}  # of llama_cpp.server
FOREIGN |= {"--accuracy_interval"}  # of the example evaluation in extend.md
TORCHRUN = {option for action in get_args_parser()._actions for option in action.option_strings}


def command_lines(text):
    """The commands of a page: lines of code blocks, and inline code, that begin with python or torchrun."""
    joined = text.replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", joined, re.M | re.S)
    indented = re.findall(r"^    (\S.*)$", joined, re.M)
    lines = [line for block in blocks for line in block.splitlines()] + indented
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", joined, flags=re.M | re.S))
    return [line.split("  #")[0].strip() for line in lines if re.match(r"\S*(python3?|torchrun) \S", line.strip())]


def commands():
    return [(page.name, line) for page in PAGES for line in command_lines(page.read_text(encoding="utf-8"))]


def settings_of(script):
    """The settings of a script, {name: type}: the fields of the class that it passes to `configure`."""
    module = importlib.import_module(script.removesuffix(".py"))
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "configure":
            return typing.get_type_hints(getattr(module, node.args[0].id))
    raise AssertionError(f"{script} has no settings")


def is_flag(name, settings):
    name = name.lstrip("-").partition("=")[0].replace("-", "_")
    return name in settings or name.removeprefix("no_") in settings or name == "help"


def missing_names(line):
    """The scripts, flags and config files in a command that do not exist."""
    words = [word for word in shlex.split(line) if word != "..."]
    script = next((word for word in words if word.endswith(".py")), None)
    if script is None or "-m" in words[:2]:
        return []
    before, after = words[1 : words.index(script)], words[words.index(script) + 1 :]
    if not (ROOT / script).exists():
        return [script]
    missing = [word for word in before if word.startswith("-") and word.partition("=")[0] not in TORCHRUN]
    settings = settings_of(script)
    missing += [word for word in after if word.startswith("--") and not is_flag(word, settings)]
    files = [word for word in after if re.fullmatch(r"config/\w+\.py", word)]
    return missing + [file for file in files if not (ROOT / file).exists()]


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda text: text[:60])
def test_docs_commands_exist(page, line):
    assert missing_names(line) == []


def test_docs_pin_the_versions_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = set(project["dependencies"]).union(*project["optional-dependencies"].values())
    found = set()
    for path in [*PAGES, *ROOT.glob("*.py"), *ROOT.glob("notebooks/*.ipynb")]:
        text = re.sub(r"\[\w+\]==", "==", path.read_text(encoding="utf-8"))  # lm_eval[hf]==0.4.13
        found |= set(re.findall(r"\w+==[\d.]*\d", text))
    assert found >= {"torch==2.13.0"}
    assert found <= pinned


def test_missing_names_finds_what_does_not_exist():
    assert missing_names("python train_gpt2.py config/debug.py --max_lrr 3") == ["--max_lrr"]
    assert missing_names("python train_gpt2.py config/absent.py --no-compile") == ["config/absent.py"]
    assert missing_names("torchrun --standalone --nproc=2 trane.py") == ["trane.py"]
    assert missing_names("torchrun --standalon train_gpt2.py") == ["--standalon"]
    assert command_lines("text\n\n    python a.py --x   # why\n\n`python b.py` and\n```sh\npython c.py\n```\n") == [
        "python c.py",
        "python a.py --x",
        "python b.py",
    ]


def anchors(page):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_docs_files_flags_and_links_exist(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    if page.name == "coming_from.md":  # the first column of its tables is of other programs
        text = re.sub(r"^\|.*?\|", "", text, flags=re.M)
    inline = re.findall(r"`([^`\n]+)`", text)
    scripts = [path.name for path in ROOT.glob("*.py") if "configure(" in path.read_text(encoding="utf-8")]
    scripts.remove("configurator.py")
    settings = {name for script in scripts for name in settings_of(script)}
    for words in inline:
        for flag in re.findall(r"(?<!\S)--[\w-]+", words) if re.match(r"--|python|torchrun", words) else ():
            known = flag in FOREIGN or flag in TORCHRUN or flag.replace("_", "-") in TORCHRUN
            assert known or is_flag(flag, settings), flag
        if re.fullmatch(r"(benchmarks|config|docs|notebooks|scripts|tests)/[\w.]+\.\w+", words):
            assert (ROOT / words).exists(), words
    for link, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), anchor


def test_readme_tree_lists_every_command_and_package():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The files")[2]
    listed = set(re.findall(r"^(?:.* {2})?(\w+(?:\.py|/)) ", tree, re.M)) | set(re.findall(r"(\w+(?:\.py|/))  ", tree))
    packages = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")} - {"benchmarks/"}
    assert listed == {path.name for path in ROOT.glob("*.py")} | packages


def flag_pairs(page):
    """(program, its flag, the setting here) of every row of coming_from.md's tables whose first cell lists flags."""
    pairs, program = set(), None
    for left, right in re.findall(r"^\| (.+?) \| (.+?) \|$", page, re.M):
        if right == "here":
            program = left
        theirs, ours = re.findall(r"`(-[^`]+)`", left), re.findall(r"`--(\w+)[^`]*`", right)
        if left.startswith("`-"):
            pairs |= {(program, *pair) for pair in zip(theirs, ours, strict=True)}
    return pairs


def test_docs_list_the_flags_of_other_programs_that_get_a_hint():
    page = (ROOT / "docs" / "coming_from.md").read_text(encoding="utf-8")
    tables = page.partition("## Which command")[2].partition("## What is different")[0]
    assert flag_pairs(tables) == {row[:3] for row in FOREIGN_FLAGS}
    settings = {name for script in ("train_gpt2.py", "sample.py", "hellaswag.py") for name in settings_of(script)}
    assert {row.setting for row in FOREIGN_FLAGS} <= settings


def test_commands_describe_a_model_alike():
    phrase = "a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT, llm.c or GGUF"
    for script in ("sample.py", "hellaswag.py", "export.py", "training/config.py"):
        assert phrase in " ".join((ROOT / script).read_text(encoding="utf-8").split()), script
