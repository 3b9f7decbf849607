"""playground.py: its mistakes, its page without a server, and the page in a real browser.

pip install gradio playwright       # the browser is the system's Chromium
python -m pytest -m slow tests/commands/test_playground.py
"""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import types

import pytest
from helpers import ROOT, start_python
from models import save_checkpoint, small_gpt

from inference.eval_model import LoadedModel
from inference.explorer import Explorer
from playground import build, import_gradio, main
from system.errors import UserError
from tokens.tokenizer import get_tokenizer

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed (optional)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="playwright or Chromium is not installed (optional)",
)


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """Undo afterwards what the command sets."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")


def refused(capsys, *flags):
    """The one line with which the command refuses `flags`."""
    with pytest.raises(SystemExit) as stopped:
        main(list(flags))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=a,b,c", "--model a,b,c: expected one model, or two with a comma between them"),
        ("--model=a,", "expected one model"),
        ("--port=70000", "port = 70000: expected at most 65535"),
    ],
)
def test_playground_refuses_with_one_line(capsys, flag, message):
    assert message in refused(capsys, flag)


def test_playground_names_the_package_that_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install gradio==" in refused(capsys)


def test_playground_names_the_version_that_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(__version__="5.49.1"))
    assert "gradio 5.49.1 is installed, expected version 6: pip install gradio==6." in refused(capsys)


def test_playground_names_a_port_that_is_in_use(capsys, monkeypatch):
    monkeypatch.setattr("playground.import_gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: {os.strerror(errno.EADDRINUSE)}; choose another" in refused(capsys, f"--port={port}")


@pytest.fixture
def handlers(rt):
    """The functions of the page by name, without a server."""
    tokenizer, gpt = get_tokenizer("byte"), small_gpt(vocab_size=257, block_size=64).eval()
    models = [LoadedModel(gpt.to(rt.device), tokenizer, name, chat=False) for name in ("a.pt", "b.pt")]
    page = build(import_gradio(), Explorer(models, rt))
    return {function.name: function.fn for function in page.fns.values() if function.fn is not None}


class Click:
    """An event of the page."""

    def __init__(self, index):
        self.index = index


@needs_gradio
def test_page_continues_a_prompt_and_then_from_an_alternative(handlers):
    settings = (10, 1337, 1.0, 50, 1.0)  # length, seed, temperature, top-k, top-p
    *_, (view, text, options) = handlers["start"]("ab", "as typed", *settings)
    assert len(view.ids) == 12
    assert "12 of 64 tokens" in text
    assert "Choose a token" in options
    ((chosen, text, options),) = handlers["choose"](Click(5), view)
    assert options.count("<button") == 10
    assert text.count("chosen") == 1
    *_, (other, _, _) = handlers["take"](Click(3), chosen, *settings)
    assert other.ids[:6] == [*view.ids[:5], chosen.options[3][0]]
    assert list(handlers["sliders"]("focused")) == [0.7, 40, 0.9]


@needs_gradio
def test_page_shows_attention_and_comparison(handlers):
    ((seen, text, heads),) = handlers["show"]("abc", "new document")
    assert (heads.count("<img"), "Layer 0, head 0" in text) == (8, True)
    ((seen, text),) = handlers["choose_head"](Click(6), seen)
    ((seen, text),) = handlers["choose_query"](Click(1), seen)
    assert "Layer 1, head 2</b>: token 1 attends" in text
    ((spans, text, _),) = handlers["compare"]("abc")
    assert (len(spans), "second: b.pt" in text) == (3, True)
    (detail,) = handlers["choose_span"](Click(2), spans)
    assert "<b>c</b>: first" in detail


@needs_gradio
def test_page_shows_mistakes_as_messages(handlers):
    import gradio

    with pytest.raises(gradio.Error, match="expected fewer than block_size, 64"):
        list(handlers["start"]("a" * 64, "as typed", 10, 1337, 1.0, 50, 1.0))
    with pytest.raises(gradio.Error, match="a setting is empty"):
        list(handlers["start"]("a", "as typed", 10, None, 1.0, 50, 1.0))
    with pytest.raises(gradio.Error, match="temperature = -1"):
        list(handlers["start"]("a", "as typed", 10, 1337, -1, 50, 1.0))


# ---- in a browser ----


@pytest.fixture
def served(tmp_path):
    """The address of a playground with two models."""
    names = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for n_layer, name in enumerate(names, 1):
        save_checkpoint(name, small_gpt(vocab_size=257, block_size=64, n_layer=n_layer))
    flags = ["--port=0", "--device=cpu", "--model", ",".join(map(str, names))]
    process = start_python(ROOT / "playground.py", *flags, fresh=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with contextlib.closing(process.stdout):
        line = process.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        process.terminate()
        process.wait(30)


@pytest.fixture
def tab(served):
    """A page of the browser at that address, and the addresses outside of it that it asked for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        foreign = []
        page.on("request", lambda r: r.url.startswith((served, "data:", "blob:")) or foreign.append(r.url))
        page.goto(served)
        yield page, foreign
        browser.close()


@pytest.mark.slow
@needs_gradio
@needs_browser
def test_page_in_a_browser_streams_tokens_and_continues_from_an_alternative(tab):
    page, foreign = tab
    page.get_by_label("prompt").fill("1 + 2\n<b>")
    page.get_by_text("settings", exact=True).click()
    page.get_by_label("seed").fill("7")
    page.get_by_role("button", name="Continue").click()
    tokens = page.locator("#text [data-i]")
    page.get_by_text("64 of 64 tokens").wait_for()
    assert tokens.count() == 64
    text = tokens.all_text_contents()
    assert "".join(text[:9]) == "1 + 2↵\n<b>"

    tokens.nth(12).click()
    buttons = page.locator("#options button")
    buttons.nth(9).wait_for()
    assert buttons.count() == 10
    alternative = buttons.nth(4).inner_text().splitlines()[0]
    buttons.nth(4).click()
    page.get_by_text("Choose a token to see").wait_for()
    page.get_by_text("64 of 64 tokens").wait_for()
    other = tokens.all_text_contents()
    assert other[:12] == text[:12]
    assert other[12].replace(" ", "␣").replace("\n", "") == alternative

    page.get_by_role("tab", name="attention").click()
    page.get_by_role("button", name="Show attention").click()
    page.locator("#heads button").nth(3).click()
    page.get_by_text("Layer 0, head 3").wait_for()

    page.get_by_role("tab", name="compare").click()
    page.get_by_role("button", name="Compare on the prompt").click()
    page.locator("#spans [data-i]").nth(8).click()
    page.locator("#span", has_text="difference").wait_for()

    page.get_by_label("prompt").fill("x" * 100)
    page.get_by_role("tab", name="continue").click()
    page.get_by_role("button", name="Continue").click()
    page.get_by_text("the text has 100 tokens: expected fewer than block_size, 64").wait_for()
    assert foreign == []


def test_import_gradio_turns_its_analytics_off(monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    with contextlib.suppress(UserError):
        import_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
