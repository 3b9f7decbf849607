"""How a benchmark measures: medians of several runs, ours and the baseline in turn, the limits in the same process."""

import platform
import statistics
import time
from dataclasses import dataclass
from importlib.metadata import version

import torch

from system.runtime import cpu_name


@dataclass(frozen=True)
class Row:
    """One line of a table. A higher ratio is better, whatever the unit: seconds are turned into rates."""

    name: str  # "train/124M/bf16/4x512"
    unit: str  # "tok/s"
    ours: float | None  # None: this machine can't run it
    baseline: float | None
    baseline_name: str
    limit: float | None  # what the hardware allows, in the same unit
    note: str = ""  # spread, peak memory, or why there is no figure
    lower_is_better: bool = False  # of memory

    @property
    def ratio(self):
        if not self.ours or not self.baseline:
            return None
        return self.baseline / self.ours if self.lower_is_better else self.ours / self.baseline


def time_in_turn(functions, runs=5, warmup=1, synchronize=lambda: None):
    """Median seconds and relative spread (max - min over the median) of each function, by name.

    The functions take turns, so that a machine that slows down slows all of them. `synchronize` waits for the device.
    """
    seconds = {name: [] for name in functions}
    for run in range(warmup + runs):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if run >= warmup:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: (medians[name], (max(v) - min(v)) / medians[name]) for name, v in seconds.items()}


def memory_bandwidth(device, size=None):
    """Bytes/s read from memory by a sum over float32 values too many for any cache."""
    values = torch.ones((size or (4 << 30 if device.type == "cuda" else 1 << 30)) // 4, device=device)
    sync = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    median, _ = time_in_turn({"read": values.sum}, runs=5, warmup=2, synchronize=sync)["read"]
    return values.nbytes / median


def machine(device):
    """One line on the machine and the versions, for the head of every table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "tiktoken"))
    return f"{name}{threads}; {platform.system()}, Python {platform.python_version()}, {packages}"


def print_rows(rows):
    """The table: ours beside the baseline and the limit."""
    print(f"{'benchmark':34} {'unit':>10} {'ours':>12} {'baseline':>12} {'ratio':>7} {'limit':>12}  baseline; notes")
    for row in rows:
        cells = (figure(row.ours), figure(row.baseline), figure(row.ratio, 2), figure(row.limit))
        print(f"{row.name:34} {row.unit:>10} {cells[0]:>12} {cells[1]:>12} {cells[2]:>7} {cells[3]:>12}", end="  ")
        print("; ".join(part for part in (row.baseline_name, row.note) if part), flush=True)


def figure(value, digits=1):
    return "-" if value is None else f"{value:,.{digits}f}"
