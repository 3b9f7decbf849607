"""The Chinese pages name the commands, messages and figures of the English pages that they translate."""

import re

import pytest
from helpers import ROOT

TRANSLATIONS = {  # Chinese page → the English pages whose content it has; tests/test_docs.py checks links and flags
    "README.zh-CN.md": ("README.md", "docs/troubleshooting.md"),
    "docs/zh/quickstart.md": (
        *("README.md", "docs/troubleshooting.md", "docs/reproduce_gpt2_124M.md", "docs/never_lose_work.md"),
        *("docs/evaluate.md", "sample.py"),  # sample.py: what --help lists
    ),
    "docs/zh/reproduce.md": ("docs/reproduce_gpt2_124M.md", "docs/troubleshooting.md"),
    "docs/zh/mac.md": ("docs/mac.md",),
    "docs/zh/troubleshooting.md": ("docs/troubleshooting.md",),
}
UNITS = "GB|MB|ms|%|FLOPs|tok/s"


def read(*names):
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)


def shell_lines(text):
    """The lines of the code blocks that hold commands, indented or marked as sh, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()] + re.findall(r"^    (\S.*)$", text, re.M)
    return {line.split(" # ")[0].strip() for line in lines}


def inline_code(text):
    return set(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)))


def figures(text):
    """The numbers with a decimal point, a thousands separator or a unit."""
    return set(re.findall(rf"\d[\d,]*[.,]\d[\d.e+-]*\d|\d[.]\d|\d+(?= ?(?:{UNITS}))", text))


def invented(page, originals):
    """The commands, code and figures of a translation that none of its originals has."""
    text, original = read(page), read(*originals)
    missing = shell_lines(text) - shell_lines(original)
    missing |= {code for code in inline_code(text) if code not in original}
    return missing | (figures(text) - figures(original))


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_translations_hold_only_what_the_english_pages_hold(page):
    assert invented(page, TRANSLATIONS[page]) == set()


def test_every_chinese_page_has_an_original_and_a_link_to_it():
    pages = [*ROOT.glob("README.*.md"), *ROOT.glob("docs/zh/*.md")]
    assert {page.relative_to(ROOT).as_posix() for page in pages} == set(TRANSLATIONS)
    for page in pages:
        links = re.findall(r"\]\(([\w./-]+)", page.read_text(encoding="utf-8"))
        original = ROOT / TRANSLATIONS[page.relative_to(ROOT).as_posix()][0]
        assert original.resolve() in {(page.parent / link).resolve() for link in links}


def test_figures_finds_numbers_with_a_point_a_separator_or_a_unit():
    assert figures("8.55e18 FLOPs, 524,288 tokens, 20 GB, 2.13.0, 8 GPUs, 7.5.") == {
        *("8.55e18", "524,288", "20", "2.13.0", "7.5"),
    }
