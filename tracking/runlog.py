"""The log of a run: `STEP STREAM VALUE`, one value a line, and its reader.

Three fields split on a space are read by every notebook written for this format: `250 val 3.2924`.
"""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from system.files import AtomicFile

FORMATS = {
    "skipped": ".0f",
    "lr": ".6e",
    "dt_ms": ".2f",
    "tok_per_sec": ".0f",
    "hella": ".4f",
    "mfu": ".4f",
}  # losses: .6f


class Stream(NamedTuple):
    steps: np.ndarray  # int64 (n,)
    values: np.ndarray  # float64 (n,)


class RunLog:
    """`LOG_DIR/log.txt`, appended to. `from_step` is where the run (re)starts: lines of it and of later go.

    `sinks` are told the same: see sinks.py.
    """

    def __init__(self, log_dir, from_step=0, sinks=()):
        self.path = path_of(log_dir)
        self.sinks = sinks
        if self.path.exists():
            kept = [f"{step} {name} {text}\n" for step, name, text in read_lines(self.path) if step < from_step]
            with AtomicFile(self.path) as f:
                f.write("".join(kept).encode())
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)  # a line is written when it ends
        self.warned = False

    def write(self, step, **values):
        """Append one line a value: `log.write(250, val=3.2924)`."""
        lines = [f"{step} {name} {value:{FORMATS.get(name, '.6f')}}\n" for name, value in values.items()]
        try:
            for line in lines:
                self.file.write(line)
            for sink in self.sinks:
                sink.write(step, values)
        except OSError as error:  # a full disk must not end a run; the lines wait in memory
            if not self.warned:
                print(f"warning: {self.path} can't be written for now ({error.strerror})", flush=True)
            self.warned = True

    def close(self):
        self.file.close()


def path_of(log_dir):
    return Path(log_dir) / "log.txt"


def config_path(log_dir):
    return Path(log_dir) / "config.json"


def read_config(log_dir):
    """What stands beside a log of what made the run, or {} where nothing (readable) does: a log made elsewhere."""
    try:
        record = json.loads(config_path(log_dir).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def read_log(path):
    """The streams of a log, by name: {"train": Stream(steps, values), …}. `path` is the file or its folder.

    A torn or foreign line is named in a warning and skipped. Raises `FileNotFoundError` where there is no log.
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
    """The readable lines of a log as (step, stream, value's text)."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        try:
            step, name, text = line.split()
            float(text)
            if not line.endswith("\n"):
                raise ValueError("torn")
            lines.append((int(step), name, text))
        except ValueError:
            warnings.warn(f"{path}:{number}: skipped {line.rstrip()!r}, expected STEP STREAM VALUE", stacklevel=2)
    return lines
