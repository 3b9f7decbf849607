"""A page in the browser that shows what a model computes: how each token surprises it, alternatives, attention.

    pip install gradio==6.31.0
    python playground.py --model log/mine
    python playground.py --model log/mine,gpt2      # also compares the two models

Only this machine can open the page; it loads nothing from other hosts and sends nothing anywhere. This file lays it
out. The numbers come from inference/explorer.py, their HTML from inference/markup.py.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import dataclasses
import functools
import html
import os
import socket
from dataclasses import dataclass
from typing import Annotated, Literal

from configurator import Range, configure
from formats.read import BestFlag
from inference import markup
from inference.eval_model import find_newest, load
from inference.explorer import LONGEST_PROMPT, Explorer, View
from inference.sampling import STYLES, Sampling
from inference.text_samples import DEFAULT_PROMPTS
from system import runtime
from system.errors import UserError, command
from system.packages import install_command

MAJOR_VERSION = "6"  # of gradio
MAP_TOKENS = 96  # of a prompt in its attention maps


@dataclass(frozen=True)
class Settings(BestFlag):
    """Open a page in the browser that shows what a model computes."""

    model: str | None = None
    """a run's folder or checkpoint, gpt2 … gpt2-xl, Hugging Face's folder, or a file of nanoGPT or llm.c; two with a
    comma between them are compared; by default the newest checkpoint under log/"""
    port: Annotated[int, Range(0, 65535)] = 7860
    """the page is http://127.0.0.1:PORT; 0 takes a free port"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to run"""
    dtype: Literal["auto", *runtime.DTYPES] = "float32"
    """number format of matrix products; auto: bfloat16 if the hardware supports it, faster and less exact"""

    def check(self):
        names = [] if self.model is None else self.model.split(",")
        if not all(names) or len(names) > 2:
            raise UserError(f"--model {self.model}: expected one model, or two with a comma between them")


@command
def main(argv=None):
    settings = configure(Settings, argv)
    gradio = import_gradio()
    with listen(settings.port) as listener:
        names = [find_newest(settings.best)] if settings.model is None else settings.model.split(",")
        rt = runtime.start(settings.device, settings.dtype)
        explorer = Explorer([load(name, rt, settings.best) for name in names], rt)
        models = " and ".join(model.source for model in explorer.models)
        print(f"{models} on {rt.device}: http://127.0.0.1:{listener.getsockname()[1]} (Ctrl-C ends)", flush=True)
        serve(gradio, explorer, listener)


def import_gradio():
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"playground.py needs gradio ({error}): {install_command('playground')}") from error
    if gradio.__version__.partition(".")[0] != MAJOR_VERSION:
        expected = f"expected version {MAJOR_VERSION}: {install_command('playground')}"
        raise UserError(f"gradio {gradio.__version__} is installed, {expected}")
    return gradio


def listen(port):
    """A socket of this machine only, on which the page will be served."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(f"--port {port}: {os.strerror(error.errno)}; choose another, or 0 for a free one") from error


def serve(gradio, explorer, listener):
    """Serve the page until Ctrl-C."""
    import fastapi
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none to download
    look = {"theme": gradio.themes.Base(**fonts), "css": markup.CSS, "footer_links": []}
    off = {"run_history": False, "ssr_mode": False, "pwa": False, "mcp_server": False, "max_file_size": 1}
    app = fastapi.FastAPI()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])  # not through a foreign name
    app = gradio.mount_gradio_app(app, build(gradio, explorer), path="", **look, **off)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


# ---- the page ----

# The number of the element that was clicked becomes the event's `index`.
ON_CLICK = """element.addEventListener("click", event => {
  const chosen = event.target.closest("[data-i]");
  if (chosen) trigger("select", {index: Number(chosen.dataset.i)});
});"""


def build(gradio, explorer):
    """The page: a prompt, and tabs for its continuation, its attention and, with two models, their difference."""
    name = explorer.models[0].source
    with gradio.Blocks(title=f"playground: {name}", analytics_enabled=False) as page:
        gradio.HTML(f"<h3>{html.escape(name)}</h3>")
        text = DEFAULT_PROMPTS[explorer.tokenizer.name]
        prompt = gradio.Textbox(text, label="prompt", lines=3, max_lines=12, max_length=LONGEST_PROMPT)
        form = gradio.Radio(list(explorer.forms), value=explorer.forms[0], label="how the model reads it")
        with gradio.Tab("continue"):
            add_continuation(gradio, explorer, prompt, form)
        with gradio.Tab("attention"):
            add_attention(gradio, explorer, prompt, form)
        if len(explorer.models) == 2:
            with gradio.Tab("compare"):
                add_comparison(gradio, explorer, prompt)
    return page


def generation(length, seed, *sampling):
    """The `generation` of an `Explorer` from the page's settings."""
    if None in (length, seed, *sampling):
        raise UserError("a setting is empty: expected a number")
    return int(length), Sampling(*sampling), int(seed)


def add_continuation(gradio, explorer, prompt, form):
    """A text that grows token by token; each token can be replaced by one of its alternatives."""

    def draw(views):
        for view in views:
            text = markup.view_html(view, explorer.tokenizer, explorer.block_size)
            yield view, text, markup.options_html(view, explorer.tokenizer)

    def start(prompt, form, *settings):
        yield from draw(explorer.start(prompt, form, generation(*settings)))

    def choose(event: gradio.EventData, view):
        yield from draw([explorer.choose(view, event.index)])

    def take(event: gradio.EventData, view, *settings):
        yield from draw(explorer.take(view, event.index, generation(*settings)))

    def sliders(style):
        return dataclasses.astuple(STYLES[style])

    with gradio.Row():
        go, stop = gradio.Button("Continue", variant="primary", min_width=120), gradio.Button("Stop", min_width=80)
    with gradio.Accordion("settings", open=False):
        with gradio.Row():
            style = gradio.Radio(list(STYLES), value="creative", label="style: sets the three sliders")
            length = gradio.Slider(1, explorer.block_size, min(100, explorer.block_size), step=1, label="length")
            seed = gradio.Number(1337, precision=0, minimum=0, label="seed")
        with gradio.Row():
            default = STYLES[style.value]
            sampling = [
                gradio.Slider(0, 2, default.temperature, step=0.05, label="temperature"),
                gradio.Slider(0, 200, default.top_k, step=1, label="top-k (0: all)"),
                gradio.Slider(0, 1, default.top_p, step=0.01, label="top-p (1: all)"),
            ]
    gradio.HTML(markup.legend_html())
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            text = gradio.HTML(js_on_load=ON_CLICK, elem_id="text")
        with gradio.Column(scale=1, min_width=260):
            options = gradio.HTML(js_on_load=ON_CLICK, elem_id="options")
    view = gradio.State(View())
    shown, settings = [view, text, options], [length, seed, *sampling]
    style.change(sliders, style, sampling, api_visibility="private")
    streams = [
        on(gradio, go.click, start, [prompt, form, *settings], shown),
        on(gradio, options.select, take, [view, *settings], shown),
    ]
    on(gradio, text.select, choose, view, shown, cancels=streams)
    stop.click(None, cancels=streams)


def add_attention(gradio, explorer, prompt, form):
    """An image for every head over the prompt; a chosen head shows what a chosen token attends to."""

    def draw(seen):
        return seen, markup.attention_html(*seen, explorer.tokenizer)

    def show(prompt, form):
        ids, maps = explorer.attention(prompt, form, MAP_TOKENS)
        yield *draw((ids, maps, 0, len(ids) - 1)), markup.heads_html(maps)

    def choose_head(event: gradio.EventData, seen):
        ids, maps, _, query = seen
        yield draw((ids, maps, event.index, query))

    def choose_query(event: gradio.EventData, seen):
        ids, maps, number, _ = seen
        yield draw((ids, maps, number, event.index))

    go = gradio.Button("Show attention", variant="primary")
    text = gradio.HTML(js_on_load=ON_CLICK, elem_id="query")
    heads = gradio.HTML(js_on_load=ON_CLICK, elem_id="heads")
    seen = gradio.State()  # (ids, maps, number of the head, number of the querying token)
    on(gradio, go.click, show, [prompt, form], [seen, text, heads])
    on(gradio, heads.select, choose_head, seen, [seen, text])
    on(gradio, text.select, choose_query, seen, [seen, text])


def add_comparison(gradio, explorer, prompt):
    """The prompt's pieces in the colour of the model that they surprise more; a chosen piece shows its numbers."""
    names = [model.source for model in explorer.models]

    def compare(prompt):
        spans = explorer.compare(prompt)
        yield spans, markup.spans_html(spans, names), ""

    def choose_span(event: gradio.EventData, spans):
        yield markup.span_html(spans[event.index])

    go = gradio.Button("Compare on the prompt", variant="primary")
    gradio.HTML(markup.difference_legend_html())
    text = gradio.HTML(js_on_load=ON_CLICK, elem_id="spans")
    detail, spans = gradio.HTML(elem_id="span"), gradio.State()
    on(gradio, go.click, compare, prompt, [spans, text, detail])
    on(gradio, text.select, choose_span, spans, detail)


def on(gradio, event, function, inputs, outputs, **options):
    """Let an event call `function`, a generator, one event at a time. A `UserError` is shown on the page."""

    @functools.wraps(function)
    def run(*args):
        try:
            yield from function(*args)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    options = {"concurrency_id": "model", "show_progress": "hidden", "api_visibility": "private"} | options
    return event(run, inputs, outputs, **options)


if __name__ == "__main__":
    main()
