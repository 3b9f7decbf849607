"""Speed and memory of training GPT-2 124M over T, B and the number of threads, with a chart.

Each line varies one of the three; what it holds fixed is in `Line`. A step takes B·T tokens, without accumulation.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.measure import Row
from benchmarks.train import Result, Variant, measure
from model import GPTConfig
from system import runtime
from text.worker_pool import cpu_count
from training import costs
from training.config import TrainConfig

CHART = Path("log") / "bench_scaling.png"


@dataclass(frozen=True)
class Line:
    """A line of the chart: what it varies, over which values, and the variant with the rest."""

    varies: str  # "T", "B" or "threads"
    values: tuple[int, ...]
    rest: Variant


@dataclass(frozen=True)
class Point:
    """One measurement."""

    value: int  # of what its line varies
    variant: Variant
    threads: int | None  # None: not on a CPU
    result: Result
    limit: float  # tokens/s at the device's peak
    estimate: int  # bytes, by training.costs

    @property
    def speed(self):
        """Tokens a second."""
        return self.variant.B * self.variant.T / self.result.median


def run(settings):
    """The rows of `python bench.py scaling`: two for each point, and the chart."""
    device = runtime.pick_device(settings.device)
    peak = costs.peak_flops(device, runtime.DTYPES[settings.dtype])
    points = {
        line.varies: [measure_point(line, value, device, peak) for value in line.values]
        for line in lines(device.type, settings)
    }
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else runtime.cpu_name()
    draw(points, f"training GPT-2 124M in {settings.dtype} on {name}", CHART)
    return [
        row for varies, column in points.items() for point in column for row in point_rows(varies, point, column[0])
    ]


def lines(device_type, settings):
    """The lines for a device. On a CPU few tokens a step, so that all points take minutes."""
    if device_type == "cuda":
        rest = Variant(device="cuda", dtype=settings.dtype, B=16, T=1024, compile=True, warmup=5, runs=settings.runs)
        return [Line("T", (128, 256, 512, 1024), rest), Line("B", (1, 4, 16, 64), rest)]
    rest = Variant(device=device_type, dtype=settings.dtype, B=2, T=128, runs=settings.runs)
    found = [Line("T", (64, 128, 256, 512, 1024), rest), Line("B", (1, 2, 4, 8), rest)]
    if device_type == "cpu":
        found.append(Line("threads", thread_counts(cpu_count()), replace(rest, B=4, T=256)))
    return found


def thread_counts(cores):
    """1, 2, 4, … up to the number of cores."""
    return (*(2**i for i in range(cores.bit_length()) if 2**i < cores), cores)


def measure_point(line, value, device, peak):
    """Measure the variant of a line at one value; a printed line says the result at once."""
    threads = torch.get_num_threads() if device.type == "cpu" else None
    variant = line.rest
    if line.varies == "threads":
        threads = value
    else:
        variant = replace(variant, **{line.varies: value})
    config, dtype = GPTConfig(), runtime.DTYPES[variant.dtype]
    cfg = TrainConfig(B=variant.B, T=variant.T, compile=variant.compile)
    estimate = costs.memory(config, cfg, variant.B, dtype, device.type).total
    limit = peak / costs.flops_per_token(config, variant.T)
    point = Point(value, variant, threads, measure(variant, threads=threads), limit, estimate)
    print(describe(point), flush=True)
    return point


def describe(point):
    v, result = point.variant, point.result
    threads = "" if point.threads is None else f"  threads {point.threads:>3}"
    return (
        f"B {v.B:>3}  T {v.T:>5}{threads}  {result.median * 1e3:>8,.0f} ms a step  {point.speed:>9,.0f} tok/s"
        f"  {point.speed / point.limit:>4.0%} of the limit  {result.peak / 1e9:>6.2f} GB (spread {result.spread:.0%})"
    )


def point_rows(varies, point, first):
    """Speed against the first point of the line, and memory against the estimate."""
    name, v = f"scaling/{varies}={point.value}", point.variant
    note = f"B = {v.B}, T = {v.T}; {point.result.median * 1e3:,.0f} ms a step, spread {point.result.spread:.0%}"
    speeds, memory = (point.speed, first.speed), (point.result.peak / 1e9, point.estimate / 1e9)
    return [
        Row(name, "tok/s", *speeds, f"{varies} = {first.value}", point.limit, note),
        Row(f"{name}/memory", "GB", *memory, "the estimate, without torch itself", None, lower_is_better=True),
    ]


def draw(points, title, path):
    """Write the chart of {what varies: its points}: one column each, speed above memory. The peak is of all threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        2, len(points), figsize=(4.2 * len(points), 6), sharey="row", squeeze=False, layout="constrained"
    )
    for (varies, column), (top, bottom) in zip(points.items(), panels.T, strict=True):
        at = [point.value for point in column]
        top.plot(at, [point.speed for point in column], "o-", color="#0072B2", label="measured")
        top.plot(at, [point.limit for point in column], "--", color="#666666", label="the model's FLOPs at the peak")
        bottom.plot(at, [point.result.peak / 1e9 for point in column], "o-", color="#0072B2")
        bottom.plot(at, [point.estimate / 1e9 for point in column], ":", color="#D55E00", label="estimate")
        fixed = {name: getattr(column[0].variant, name) for name in ("B", "T") if name != varies}
        top.set_title(", ".join(f"{name} = {value}" for name, value in fixed.items()), fontsize=10)
        bottom.set_xlabel(varies)
        for axis in (top, bottom):
            axis.set_xscale("log", base=2)
            axis.set_xticks(at, at)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("tokens a second")
    panels[1, 0].set_ylabel("peak memory, GB")
    panels[0, 0].legend(frameon=False)
    panels[1, 0].legend(frameon=False)
    figure.suptitle(title)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"wrote {path}")
