"""Write and read the log of a run: `STEP STREAM VALUE`, one value per line, e.g. `250 val 3.2924`.

The three fields are separated by one space, so that notebooks written for build-nanogpt's log.txt can read it.
"""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from system.errors import first_line
from system.files import AtomicFile

MOST_STEPS = 10**9  # of a run
DEFAULT_FORMAT = ".6f"  # of losses and the gradient norm
FORMATS = {  # by stream, or by the first word of a stream with a slash
    "skipped": ".0f",
    "lr": ".6e",
    "dt_ms": ".2f",
    "tok_per_sec": ".0f",
    "hella": ".4f",
    "mfu": ".4f",
    "mem_gb": ".3f",
    "grad": ".4e",
    "update": ".4e",
}


RECORD = {  # sections of config.json, and the types of the values in them that are read again
    "config": {"total_batch_size": int, "max_steps": int, "optimizer": str, "max_lr": (int, float), "data_dir": str},
    "model": {
        "parameters": int,
        "non_embedding_parameters": int,
        "flops_per_token": int,
        "n_layer": int,
        "n_embd": int,
    },
    "data": {"source": (str, type(None)), "tokenizer": str},
    "environment": {},
}


class Stream(NamedTuple):
    """The values of one stream of a log."""

    steps: np.ndarray  # int64 (n,)
    values: np.ndarray  # float64 (n,)


class RunLog:
    """Append values to `LOG_DIR/log.txt` and pass them to the `sinks` (see `tracking.sinks.Sink`).

    `from_step` is the step at which the run starts or resumes. Lines of that step and later ones are removed first,
    because the run writes them again.
    """

    def __init__(self, log_dir, from_step=0, sinks=(), print=print):
        self.path = path_of(log_dir)
        self.sinks = sinks
        self.print = print
        if self.path.exists():
            kept = [f"{step} {name} {text}\n" for step, name, text in read_lines(self.path) if step < from_step]
            with AtomicFile(self.path) as f:
                f.write("".join(kept).encode())
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # line buffering: flushed after each line
        self.warned = set()  # what could not be written

    def write(self, step, **values):
        """Append one line per value: `log.write(250, val=3.2924)`. Nothing that goes wrong here ends the run."""
        lines = [f"{step} {name} {value:{format_of(name)}}\n" for name, value in values.items()]
        try:
            for line in lines:
                self.file.write(line)
        except OSError as error:  # a full disk; unwritten lines stay in the buffer of the file
            self.warn_once(self.path, error)
        for sink in self.sinks:
            try:
                sink.write(step, values)
            except Exception as error:  # another program's code, often with a network behind it
                self.warn_once(type(sink).__name__, error)

    def warn_once(self, name, error):
        if name not in self.warned:
            self.print(f"warning: {name} cannot be written at the moment ({first_line(error)})")
        self.warned.add(name)

    def is_complete(self):
        """Whether all lines are in the file by now."""
        try:
            self.file.flush()
        except OSError:
            return False
        return True

    def close(self):
        self.file.close()


def format_of(name):
    """Return the format of a stream's values."""
    return FORMATS.get(name.partition("/")[0], DEFAULT_FORMAT)


def path_of(log_dir):
    """Return the path of a run's log."""
    return Path(log_dir) / "log.txt"


def plot_path(log_dir):
    """Return the path of a run's plot."""
    return Path(log_dir) / "plot.png"


def watch_path(log_dir):
    """Return the path of the heat maps of a run with `--watch`."""
    return Path(log_dir) / "watch.png"


def config_path(log_dir):
    """Return the path of the file that describes a run: its settings, data, model and environment."""
    return Path(log_dir) / "config.json"


def read_config(log_dir):
    """Return the contents of a run's `config.json`, or {} if it is missing or unreadable (a log of another program).

    Of the sections in `RECORD`, those with values of other types are left out.
    """
    try:
        record = json.loads(config_path(log_dir).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: value for name, value in record.items() if has_types(value, RECORD.get(name))}


def has_types(section, types):
    """Whether a section of the record is a dict whose values have these types, {name: type or types}; None: any."""
    if types is None:
        return True
    return isinstance(section, dict) and all(isinstance(section[name], types[name]) for name in types.keys() & section)


def read_log(path):
    """Read a log and return its streams, {"train": Stream(steps, values), …}. `path` is the file or its folder.

    A line that is incomplete or has another format is skipped with a warning. Raises `FileNotFoundError`.
    """
    path = path_of(path) if os.path.isdir(path) else Path(path)
    points = {}
    for step, name, text in read_lines(path):
        points.setdefault(name, []).append((step, float(text)))
    return {
        name: Stream(np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs]))
        for name, pairs in points.items()
    }


def read_lines(path):
    """Return the valid lines of a log as (step, stream, text of the value); warn about each other line."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            step, name, text = line.split()
            float(text)
            if not line.endswith("\n"):
                raise ValueError("incomplete")
            if not 0 <= int(step) <= MOST_STEPS:
                raise ValueError("no step of a run")
            lines.append((int(step), name, text))
        except ValueError:
            warnings.warn(f"{path}:{number}: skipped {line.rstrip()!r}, expected STEP STREAM VALUE", stacklevel=2)
    return lines
