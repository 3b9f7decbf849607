"""Every speed claim of this repository, measured beside a baseline in the same run.

    python bench.py train|scaling|optimizer|ladder|generate|eval|data|all [--json FILE]
    python bench.py tokens [--size 10M] [--batch 16384 --steps 150] [--json FILE]       # hours; not part of `all`

Each verb is a module in `benchmarks/` with `run(settings)`, which returns rows.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.measure import machine, memory_bandwidth, print_rows
from configurator import Range, configure
from system.errors import UserError, command
from system.files import AtomicFile, require_writable_file
from system.runtime import DTYPES, dtype_name, pick_device, pick_dtype
from training.costs import matmul_peak

VERBS = ("data", "train", "scaling", "optimizer", "ladder", "generate", "eval")
TOKENS = "tokens"  # takes hours
OF_TOKENS = ("part", "size", "batch", "steps", "seeds", "data_dir")  # settings that the other verbs do not have


@dataclasses.dataclass(frozen=True)
class Settings:
    """Measure this machine: what we reach, what the baseline reaches, and what the hardware allows."""

    verb: tyro.conf.Positional[tuple[str, ...]] = ()
    """what to measure: data, train, scaling, optimizer, ladder, generate, eval or all; or tokens, which takes hours"""
    json: str | None = None
    """write the rows to this file too: a list of {name, unit, ours, baseline, baseline_name, ratio, limit}"""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """where to measure"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format of matrix products, where a benchmark doesn't name its own"""
    runs: Annotated[int, Range(1, 10**4)] = 5
    """timed runs, of which the median counts"""
    part: Literal["tune", "all"] = "all"
    """tokens: only tune AdamW, or also compare the recipes"""
    size: Literal["2M", "10M"] = "2M"
    """tokens: parameters of the model, about"""
    batch: Annotated[int, Range(1)] = 2048
    """tokens: tokens in an update"""
    steps: Annotated[int, Range(10)] = 1000
    """tokens: updates of AdamW's runs"""
    seeds: Annotated[int, Range(1)] = 3
    """tokens: runs of each recipe"""
    data_dir: str = "data/stdlib"
    """tokens: folder of Python's standard library as bytes"""

    def check(self):
        verbs = (*VERBS, "all", TOKENS)
        if len(self.verb) != 1 or self.verb[0] not in verbs:
            raise UserError(f"bench.py {' '.join(self.verb)}: expected one of {', '.join(verbs)}")
        for setting in dataclasses.fields(self):
            if setting.name in OF_TOKENS and self.verb[0] != TOKENS and getattr(self, setting.name) != setting.default:
                raise UserError(f"--{setting.name} is for bench.py tokens, not for {self.verb[0]}")
        if self.json is not None:
            require_writable_file(self.json, "--json")


@command
def main(argv=None):
    settings = configure(Settings, argv, positional="verb")
    device = pick_device(settings.device)
    settings = dataclasses.replace(settings, dtype=dtype_name(pick_dtype(settings.dtype, device)))
    print(machine(device))
    peak, bandwidth = matmul_peak(device, DTYPES[settings.dtype], n=4096), memory_bandwidth(device)
    print(f"limits: {peak / 1e12:.2f} TFLOP/s in {settings.dtype} matrix products, {bandwidth / 1e9:.0f} GB/s read\n")
    verbs = VERBS if settings.verb[0] == "all" else settings.verb
    rows = []
    for verb in verbs:
        rows += importlib.import_module(f"benchmarks.{verb}").run(settings)
    print()
    print_rows(rows)
    if settings.json is not None:
        Path(settings.json).parent.mkdir(parents=True, exist_ok=True)
        with AtomicFile(settings.json) as f:
            f.write(json.dumps([dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows], indent=1).encode())
        print(f"rows written to {settings.json}")


if __name__ == "__main__":
    main()
