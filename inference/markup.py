"""HTML of what inference/inspection.py finds: tokens in colours, alternatives as buttons, attention maps as images.

Elements that can be chosen have `data-i`, their number. Colours work on a light and on a dark background.
"""

import base64
import codecs
import html
import io
import math

from inference.text_samples import CONTROL_CHARACTERS

FULL_NATS = math.log(1000)  # the surprisal that is drawn in full colour
FULL_DIFFERENCE = 4.0  # nats
SURPRISE, WEIGHT = "230 110 0", "30 120 240"  # red, green, blue
CSS = """
h3 { overflow-wrap: anywhere; }
textarea { font-family: ui-monospace, monospace !important; }
.tokens { white-space: pre-wrap; overflow-wrap: anywhere; font: 15px/1.8 ui-monospace, monospace; margin: 8px 0; }
.tokens [data-i] { cursor: pointer; border-radius: 3px; padding: 2px 0; border-right: 1px solid transparent;
  background-clip: padding-box !important; }
.tokens [data-i]:hover, .tokens .chosen { outline: 2px solid currentColor; }
.tokens .typed { font-weight: 700; }
.tokens .next::after { content: " ▸ "; opacity: .6; }
.note { font-size: 13px; opacity: .8; margin: 4px 0; }
.legend span { display: inline-block; padding: 0 6px; margin: 1px 0; border-radius: 3px; }
.models td:first-child { overflow-wrap: anywhere; }
.options button { display: flex; gap: 10px; align-items: center; width: 100%; padding: 5px 6px; margin: 2px 0;
  border-radius: 4px; text-align: left; cursor: pointer; font: 14px ui-monospace, monospace; }
.options button:hover, .options button:focus-visible { outline: 2px solid currentColor; }
.options .percent { margin-left: auto; }
.gradio-container { overflow: clip !important; }
#query { position: sticky; top: 0; z-index: 1; max-height: 40vh; overflow: auto !important;
  background: var(--body-background-fill); }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 8px; margin-bottom: 12px; }
.heads button { all: unset; cursor: pointer; text-align: center; font-size: 12px; }
.heads img { width: 100%; image-rendering: pixelated; border: 1px solid rgb(128 128 128 / .5); margin: 0 !important; }
.heads button:hover img, .heads button:focus img { outline: 2px solid currentColor; }
"""


def tint(color, share):
    """A style with a background of `color` in a strength of 0 … 1."""
    return f"background: rgb({color} / {0.8 * min(1.0, max(0.0, share)):.2f})"


def texts_of(pieces):
    """What the tokens of a text, given as bytes, show. A character of several tokens stands at its last, · before."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [utf8.decode(piece).translate(CONTROL_CHARACTERS) or "·" for piece in pieces]


def mark(number, text, style, title, classes=""):
    """A token in running text. Its line breaks stay, after a sign."""
    text = html.escape(text).replace("\n", "↵\n")
    return f'<span data-i="{number}" class="{classes}" style="{style}" title="{html.escape(title)}">{text}</span>'


def quoted(data):
    """A token by itself, with signs for its white space; in hexadecimal if it is no whole characters."""
    try:
        text = data.decode().translate(CONTROL_CHARACTERS)
    except UnicodeDecodeError:
        text = f"⟨{data.hex().upper()}⟩"
    return html.escape(text).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def probability(nats):
    p = math.exp(-nats)
    if p < 1e-5:
        return "under 0.001%"
    return f"{p:.1%}" if p >= 0.001 else f"{p:.3%}"


# ---- a text and its alternatives ----


def view_html(view, tokenizer, block_size):
    """The tokens of a `View`, coloured by surprisal, the place of the next one, and their number and mean."""
    parts, texts = [], texts_of([tokenizer.decode_bytes([i]) for i in view.ids])
    for i, (token, text) in enumerate(zip(view.tokens, texts, strict=True)):
        classes = ("typed " if i < view.prompt else "") + ("chosen" if i == view.chosen else "")
        if token.nats is None:
            style, title = "", "the first token: nothing precedes it"
        else:
            style = tint(SURPRISE, token.nats / FULL_NATS)
            title = f"{token.nats:.2f} nats, probability {probability(token.nats)}"
        parts.append(mark(i, text, style, title, classes))
    count, nats = len(view.tokens), [token.nats for token in view.tokens if token.nats is not None]
    if count < block_size:
        parts.append(mark(count, "", "", "the next token", "next chosen" if view.chosen == count else "next"))
    mean = f", {sum(nats) / len(nats):.2f} nats each" if nats else ""
    return f'<div class="tokens">{"".join(parts)}</div><p class="note">{count} of {block_size} tokens{mean}</p>'


def legend_html():
    chances = (1, 2, 10, 100, 1000)
    marks = (
        f'<span style="{tint(SURPRISE, math.log(n) / FULL_NATS)}">{math.log(n):.1f} nats: {name}</span>'
        for n, name in zip(chances, ("certain", "1 in 2", "1 in 10", "1 in 100", "1 in 1000 or less"), strict=True)
    )
    return f'<p class="note legend">{" ".join(marks)} <b>bold: typed</b></p>'


def options_html(view, tokenizer):
    """The alternatives of a `View` as buttons with bars, below what stands there."""
    if not view.tokens:
        return ""
    if view.chosen is None:
        return '<p class="note">Choose a token to see what else the model expects there.</p>'
    if view.chosen < len(view.tokens):
        token = view.tokens[view.chosen]
        name = quoted(tokenizer.decode_bytes([token.id]))
        now = f"<b>{name}</b>: {token.nats:.2f} nats, {probability(token.nats)}. The likeliest in its place:"
    else:
        now = "The likeliest next tokens:"
    buttons = []
    for number, (i, p) in enumerate(view.options):
        bar = f"background: linear-gradient(90deg, rgb({WEIGHT} / .35) {p:.1%}, transparent {p:.1%})"
        name, percent = quoted(tokenizer.decode_bytes([i])), probability(-math.log(p) if p else math.inf)
        buttons.append(f'<button data-i="{number}" style="{bar}">{name}<span class="percent">{percent}</span></button>')
    note = '<p class="note">Choose one to continue from it.</p>'
    return f'<div class="options"><p>{now}</p>{"".join(buttons)}{note}</div>'


# ---- attention ----


def heads_html(maps):
    """One small image for each head of the maps (n_layer, nh, T, T): rows are queries, columns keys."""
    parts = []
    for layer, heads in enumerate(maps):
        parts.append(f'<p class="note">layer {layer}</p><div class="heads">')
        for head, weights in enumerate(heads):
            name, number = f"layer {layer}, head {head}", layer * len(heads) + head
            image = f'<img alt="{name}" src="data:image/png;base64,{png(weights)}">'
            parts.append(f'<button data-i="{number}" title="{name}">{image}head {head}</button>')
        parts.append("</div>")
    return "".join(parts)


def png(weights):
    """Weights (T, T) of 0 … 1 as an image in base64: their square roots are the opacity, so that small ones show."""
    from PIL import Image

    alpha = Image.fromarray((weights.sqrt() * 255).round().byte().numpy())
    image = Image.new("RGB", alpha.size, tuple(map(int, WEIGHT.split())))
    image.putalpha(alpha)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def attention_html(ids, maps, number, query, tokenizer):
    """The tokens, coloured by how much the token `query` attends to each in one head of the maps."""
    layer, head = divmod(number, maps.size(1))
    parts, texts = [], texts_of([tokenizer.decode_bytes([i]) for i in ids])
    for i, text in enumerate(texts):
        share = maps[layer, head, query, i].item()
        classes = "typed chosen" if i == query else ""
        parts.append(mark(i, text, tint(WEIGHT, share**0.5), f"{share:.1%}", classes))
    strongest = maps[layer, head, query].topk(min(3, query + 1))
    listed = ", ".join(
        f"<b>{quoted(tokenizer.decode_bytes([ids[i]]))}</b> (token {i}) {share:.0%}"
        for share, i in zip(strongest.values.tolist(), strongest.indices.tolist(), strict=True)
    )
    return (
        f'<p><b>Layer {layer}, head {head}</b>: token {query} attends to {listed}.</p><div class="tokens">'
        f'{"".join(parts)}</div><p class="note">Choose another token here, or another head below.</p>'
    )


# ---- two models ----


def spans_html(spans, names):
    """The pieces of a text, coloured by which of two models they surprise more, and both models' totals."""
    parts = [
        mark(i, text, difference_tint(span.second - span.first), describe_span(span))
        for i, (span, text) in enumerate(zip(spans, texts_of([span.text for span in spans]), strict=True))
    ]
    size, totals = sum(len(span.text) for span in spans), [sum(s.first for s in spans), sum(s.second for s in spans)]
    rows = ""
    for place, name, total in zip(("first", "second"), names, totals, strict=True):
        rate = f"{total / size / math.log(2):.3f}" if size else "–"
        rows += f"<tr><td>{place}: {html.escape(name)}</td><td>{total:.2f}</td><td>{rate}</td></tr>"
    return (
        f'<div class="tokens">{"".join(parts)}</div>'
        f'<table class="models"><tr><th>model</th><th>nats</th><th>bits/byte</th></tr>{rows}</table>'
    )


def difference_tint(nats):
    return tint(SURPRISE if nats > 0 else WEIGHT, abs(nats) / FULL_DIFFERENCE)


def describe_span(span):
    values = f"first {span.first:.2f} nats ({probability(span.first)}), second {span.second:.2f} nats"
    return f"{values} ({probability(span.second)}), difference {span.second - span.first:+.2f} nats"


def span_html(span):
    """What both models say of one piece."""
    return f"<p><b>{quoted(span.text)}</b>: {describe_span(span)}</p>"


def difference_legend_html():
    names = {-4: "4 nats or more: the first model is more surprised", -1: "1 nat", 0: "equal", 1: "1 nat"}
    names[4] = "4 nats or more: the second"
    marks = (f'<span style="{difference_tint(nats)}">{name}</span>' for nats, name in names.items())
    return (
        f'<p class="note legend">{" ".join(marks)}</p><p class="note">Both models read the text after end-of-text. A'
        " piece ends where a token of each model ends; its nats are the sum over its tokens.</p>"
    )
