"""The model card of an export: README.md as the Hugging Face hub shows it, and the curves of the run.

It states what the run's checkpoint, config.json and log.txt say and nothing else: neither a language nor a licence.
"""

import io
import warnings
from pathlib import Path

from formats.model_file import count_values
from system.words import duration, format_count
from tracking.curves import draw_runs, x_axis
from tracking.intervals import share_interval
from tracking.runlog import path_of, read_config, read_log

CARD, CURVES = "README.md", "curves.png"
HELLASWAG_EXAMPLES = 10042  # of its validation set
HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
---
"""


def card_files(model_file, name):
    """The files of a model card, {file name: bytes}, for a `ModelFile` that users load as `name`."""
    record, log = run_of(model_file)
    parts = [HEADER, f"# {Path(name).name}\n", describe_model(model_file, record)]
    files = {}
    if record:
        parts += [results(model_file, record, log), recipe(model_file, record, log)]
        if log:
            files[CURVES] = draw_curves(model_file.log_dir)
            parts.append(f"![Losses, learning rate and gradient norm of the run]({CURVES})\n")
    parts.append(usage(model_file, name))
    return {CARD: "\n".join(part for part in parts if part).encode()} | files


def run_of(model_file):
    """(config.json, log) of the run that wrote a model: two dicts, empty where they are missing or another model's."""
    if model_file.log_dir is None:
        return {}, {}
    record = read_config(model_file.log_dir)
    sections, model = ("config", "model", "data", "environment"), record.get("model", {})
    if not all(record.get(section) for section in sections):
        return {}, {}
    if any(model.get(name) != size for name, size in model_file.shape.items()):
        return {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about lines that are no values
        log = read_log(model_file.log_dir) if path_of(model_file.log_dir).is_file() else {}
    return record, log


def draw_curves(log_dir):
    """The PNG that `plot.py` draws of a run."""
    with io.BytesIO() as f:
        draw_runs([log_dir]).savefig(f, format="png", dpi=100)
        return f.getvalue()


# ---- sections ----


def describe_model(model_file, record):
    shape = model_file.shape
    text = (
        f"A GPT-2 with {count_values(shape, shape['vocab_size']):,} parameters: {shape['n_layer']} layers of width"
        f" {shape['n_embd']:,}, {shape['n_head']} heads, a context of {shape['block_size']:,} tokens."
    )
    if model_file.tokenizer == "byte":
        text += " Its tokens are the 256 bytes and end-of-text."
    elif model_file.tokenizer is not None:
        text += f" Its tokenizer is that of {model_file.tokenizer}, {shape['vocab_size']:,} tokens."
    if record:
        start = record["config"].get("init_from", "scratch")
        begin = "trained from random weights" if start == "scratch" else f"fine-tuned from {file_names(start)}"
        text += f" It was {begin}."
    if model_file.chat:
        text += " It was tuned on conversations; its tokenizer has the chat template."
    return text + "\n"


def results(model_file, record, log):
    """The table of the last evaluations that the log has up to the model's step."""
    rows = []
    for stream, title, describe in (
        ("val", "validation loss", lambda value: f"{value:.4f} nats per token"),
        ("val_bpb", "validation loss", lambda value: f"{value:.4f} bits per byte"),
        ("hella", "HellaSwag, acc_norm", lambda value: describe_hellaswag(value, record["config"])),
    ):
        found = last_value(log, stream, model_file.step)
        if found is not None:
            step, value = found
            rows.append((title, describe(value) + ("" if step == model_file.step else f", after {step:,} steps")))
    return table(f"Results after {model_file.step:,} steps", rows)


def last_value(log, stream, step):
    """(step, value) of the last value of a stream at `step` or before; None if there is none."""
    if stream not in log:
        return None
    points = [(s, v) for s, v in zip(log[stream].steps.tolist(), log[stream].values.tolist(), strict=True) if s <= step]
    return points[-1] if points else None


def describe_hellaswag(share, config):
    """The score, with its 95% interval where the number of examples is known."""
    if config.get("hellaswag_data") is not None:
        return f"{share:.4f} on {file_names(config['hellaswag_data'])}"
    n = min(config.get("hellaswag_limit") or HELLASWAG_EXAMPLES, HELLASWAG_EXAMPLES)
    low, high = share_interval(share, n)
    return f"{share:.4f} (95% interval {low:.4f} to {high:.4f}, {n:,} examples)"


def recipe(model_file, record, log):
    """The table of data, settings, hardware and time."""
    config, data, machine = record["config"], record["data"], record["environment"]
    step, tokens = model_file.step, config.get("total_batch_size")
    rows = []

    def add(title, text, *needed):
        if None not in needed:
            rows.append((title, text()))

    add("data", lambda: file_names(data["source"]), data.get("source"))
    add("its tokens", lambda: f"{data['train']:,} to train, {data['val']:,} to validate", data.get("train"))
    add("tokens seen", lambda: f"{step * tokens:,}", tokens)
    add("batch", lambda: f"{tokens:,} tokens an update, sequences of {config['T']:,}", tokens, config.get("T"))
    add("optimizer", lambda: describe_optimizer(config), config.get("optimizer"), config.get("beta2"))
    add("learning rate", lambda: describe_schedule(config), config.get("schedule"), config.get("warmup_steps"))
    add("dropout", lambda: f"{config['dropout']:g}", config.get("dropout") or None)
    add("number format", lambda: machine["dtype"], machine.get("dtype"))
    add("hardware", lambda: describe_hardware(machine), machine.get("device"))
    add("time in training steps", lambda: training_time(model_file, record, log), log.get("dt_ms"))
    add("code", lambda: f"commit {machine['git_commit']}", machine.get("git_commit"))
    add("torch", lambda: machine["torch"], machine.get("torch"))
    return table("Training", rows)


def describe_optimizer(config):
    betas = f"β {config['beta1']:g} and {config['beta2']:g}"
    return (
        f"{config['optimizer']}, {betas}, weight decay {config['weight_decay']:g}, clipped at {config['grad_clip']:g}"
    )


def describe_schedule(config):
    return (
        f"up to {config['max_lr']:g} in {config['warmup_steps']:,} steps, then {config['schedule']} to"
        f" {config['min_lr']:g} at step {config['max_steps']:,}"
    )


def describe_hardware(machine):
    device = machine["device"]
    if device == "cpu":
        device = machine.get("cpu", device)
        device += f", {format_count(machine.get('threads', 1), 'thread')}"
    return device if machine.get("world_size", 1) == 1 else f"{machine['world_size']} × {device}"


def training_time(model_file, record, log):
    hours = x_axis(model_file.log_dir, log, record, "hours")(model_file.step)
    return duration(3600 * float(hours))


def usage(model_file, name):
    prompt = '"Once upon a time"'
    if model_file.chat:
        prompt = '[{"role": "user", "content": "What is the capital of France?"}]'
    return f"""## Use it

```python
from transformers import pipeline

generate = pipeline("text-generation", "{name}")
print(generate({prompt}, max_new_tokens=50, do_sample=True)[0]["generated_text"])
```
"""


def table(title, rows):
    """A section with a table of two columns; "" if it has no rows."""
    if not rows:
        return ""
    cells = "\n".join(f"| {name} | {str(text).replace('|', '&#124;')} |" for name, text in rows)
    return f"## {title}\n\n| | |\n|---|---|\n{cells}\n"


def file_names(text):
    """`text` with the last part of each absolute path: a card does not show the folders of a machine."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in str(text).split())
