"""How many tokens each recipe needs to reach the loss of AdamW, whose settings are tuned first.

GPT-2's shape at about 2M or 10M parameters is trained on Python's standard library, as bytes. AdamW is tuned setting by
setting, then trained with several seeds. Every other recipe is trained with the same seeds for more and more steps,
each time with its complete schedule, until its final validation loss is that of AdamW with the same seed; the number
of steps is interpolated. Runs that are done are skipped, so the same command continues an interrupted benchmark.
"""

import math
import statistics
from pathlib import Path

import numpy as np

from benchmarks.measure import Row
from configurator import configure
from sweep import Point, Settings, as_flags, check_same_settings, finite_or_inf, run_point, summarize
from system.errors import UserError
from system.lock import folder_lock
from system.signals import StopRequest

FOLDER = Path("log") / "bench_tokens"
T = 256
SIZES = {
    "2M": {"n_layer": 4, "n_head": 4, "n_embd": 192},
    "10M": {"n_layer": 6, "n_head": 6, "n_embd": 384},
}
COMMON = {
    "block_size": T,
    "T": T,
    "B": 8,
    "schedule": "linear",
    "min_lr": 0.0,
    "compile": False,
    "val_interval": 0,
    "val_tokens": 256 * T,
    "log_interval": 50,
    "checkpoint_interval": 0,
    "keep_last": 1,
    "sample_interval": 0,
    "hellaswag_interval": 0,
}
# The settings of a recipe; `warmup` is a share of the steps.
ADAMW = {"optimizer": "adamw", "max_lr": 4e-3, "beta2": 0.98, "warmup": 0.1}  # the tuning starts here
TUNED = {  # values of AdamW's settings, in the order in which the settings are tuned
    "max_lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "beta2": (0.95, 0.98, 0.99),
    "warmup": (0.03, 0.1, 0.3),
}
MUON = {"optimizer": "muon", "muon_momentum": 0.9, "beta2": 0.98, "warmup": 0.03}
RECIPES = {f"muon, max_lr {max_lr}": MUON | {"max_lr": max_lr} for max_lr in (6e-3, 12e-3)}
LENGTHS = (0.15, 0.25, 0.35, 0.5, 0.7, 1.0)  # shares of AdamW's steps
FIRST_SEED = 1337


def run(settings):
    """The rows of `python bench.py tokens`."""
    check_data(settings)
    with folder_lock(folder_of(settings)), StopRequest() as stop:
        bench = Benchmark(settings, stop)
        best = bench.tune()
        if settings.part == "tune":
            return []
        seeds = range(FIRST_SEED, FIRST_SEED + settings.seeds)
        targets = [bench.final_loss(best, seed) for seed in seeds]
        print(f"AdamW: {spread(targets)} after {settings.steps:,} steps", flush=True)
        rows = []
        for name, recipe in RECIPES.items():
            needed = [bench.tokens_to_reach(target, recipe, seed) for target, seed in zip(targets, seeds, strict=True)]
            prefix = f"tokens/{settings.size}/{settings.batch}"
            rows.append(row(f"{prefix}/{name}", needed, settings.steps * settings.batch))
        return rows


def folder_of(settings):
    """The folder of the runs with this size and batch: benchmarks of others may run at the same time."""
    return FOLDER / f"{settings.size}_{settings.batch}"


def check_data(settings):
    if not (Path(settings.data_dir) / "meta.json").exists():
        raise UserError(
            f"{settings.data_dir} holds no tokens: python prepare.py stdlib --tokenizer byte --out {settings.data_dir}"
        )


class Benchmark:
    """Trains on demand, each run in a process and a folder of its own."""

    def __init__(self, settings, stop):
        self.settings, self.stop = settings, stop

    def tune(self):
        """AdamW's best settings, by the final validation loss with the first seed."""
        best = ADAMW
        for name in TUNED:
            losses = self.try_values(best, name)
            best = best | {name: min(losses, key=losses.get)}
            tried = ", ".join(f"{value} {losses[value]:.4f}" for value in sorted(losses))
            print(f"AdamW, {name}: {tried}", flush=True)
        return best

    def try_values(self, recipe, name):
        """{value: final loss} of one setting: from the recipe's value up, then down, each until a loss is worse."""
        values = TUNED[name]
        start, losses = values.index(recipe[name]), {}
        for outward in (values[start:], values[:start][::-1]):
            for value in outward:
                losses[value] = self.final_loss(recipe | {name: value}, FIRST_SEED)
                if losses[value] > min(losses.values()):
                    break
        return losses

    def tokens_to_reach(self, target, recipe, seed):
        """Tokens after which the recipe's final loss is `target`, or None if that is outside of LENGTHS."""
        steps, losses = [], []
        for length in LENGTHS:
            steps.append(round(length * self.settings.steps))
            losses.append(self.final_loss(recipe, seed, steps[-1]))
            if losses[-1] <= target:
                break
        if len(steps) == 1 or losses[-1] > target:
            return None
        logs = np.interp(target, losses[:-3:-1], [math.log(count) for count in steps[:-3:-1]])
        return math.exp(logs) * self.settings.batch

    def final_loss(self, recipe, seed, steps=None):
        """The validation loss at the end of a run, in nats per byte; trains it if that is not done."""
        steps = steps or self.settings.steps
        given = recipe | {"seed": seed, "max_steps": steps, "total_batch_size": self.settings.batch}
        given["warmup_steps"] = round(given.pop("warmup") * steps)
        name = ",".join(f"{key}={value}" for key, value in given.items())
        here = {"data_dir": self.settings.data_dir, "log_dir": str(folder_of(self.settings) / name)}
        here |= {"device": self.settings.device, "dtype": self.settings.dtype}
        arguments = as_flags(COMMON | SIZES[self.settings.size] | given | here)
        point = Point(given, configure(Settings, arguments), arguments)
        check_same_settings(point)
        if not point.is_done():
            print(f"training {name}", flush=True)
            code = run_point(point, self.stop)
            if self.stop.requested:
                print("stopped on request; run the same command again to continue", flush=True)
                raise KeyboardInterrupt
            if code or not point.is_done():
                raise UserError(f"the run in {point.log_dir} ended early, with exit code {code}: see above")
        return finite_or_inf(summarize(point).get("val"))


def row(name, needed, baseline):
    """A row of the table, and a line, from the tokens needed with each seed."""
    found = [tokens for tokens in needed if tokens is not None]
    missing = f"{len(needed) - len(found)} of {len(needed)} seeds reach it outside of {LENGTHS} of the tokens"
    shares = "AdamW's tokens x " + spread([tokens / baseline for tokens in found]) if found else ""
    note = "; ".join(part for part in (shares, missing if len(found) < len(needed) else "") if part)
    print(f"{name}: {note}", flush=True)
    tokens = statistics.mean(found) if found else None
    return Row(name, "tokens", tokens, baseline, "AdamW, tuned", None, note, lower_is_better=True)


def spread(values):
    """Mean and range: `1.2345 (1.2300 … 1.2390)`."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} … {max(values):.4f})"
