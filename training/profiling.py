"""Where one step's time goes: the top operators on the screen, every one of them in a trace for a browser."""

import contextlib
import tempfile
from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from system.files import AtomicFile

TOP = 15  # operators shown


def step_profiler(rt):
    """The context for one step: torch's profiler on the first rank; the others run undisturbed and get None."""
    if not rt.master:
        return contextlib.nullcontext()
    return profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (rt.device.type == "cuda"))


def write_trace(path, profiler):
    """Write what `profiler` saw as a Chrome trace (gzip), which ui.perfetto.dev and chrome://tracing open."""
    with tempfile.TemporaryDirectory() as folder, AtomicFile(path) as f:
        trace = Path(folder) / "trace.json.gz"  # torch compresses what is called so
        profiler.export_chrome_trace(str(trace))
        f.write(trace.read_bytes())
    print(f"wrote {path}: open it in ui.perfetto.dev or chrome://tracing", flush=True)


def print_top(profiler, on_gpu):
    """GPU kernels by their time or, without a GPU, operators by their own, less that of the operators they call."""
    averages = profiler.key_averages()
    if on_gpu:
        averages = [a for a in averages if a.device_type == DeviceType.CUDA and not a.is_user_annotation]
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds, over all calls
    rows = sorted(((getattr(a, own) / 1000, a.count, a.key) for a in averages), reverse=True)
    total = sum(ms for ms, _, _ in rows)
    what = "kernel" if on_gpu else "operator"
    if not total:
        print(f"one step: the profiler saw no {what}s (on a GPU it needs CUPTI, and the right to count)")
        return
    print(f"one step: {total:,.1f} ms in {what}s")
    print(f"{what:60} {'calls':>7} {'ms':>10} {'share':>7}")
    for ms, calls, name in rows[:TOP]:
        print(f"{name[:60]:60} {calls:7,} {ms:10,.2f} {ms / total:7.1%}")
    if rows[TOP:]:
        ms, calls = sum(row[0] for row in rows[TOP:]), sum(row[1] for row in rows[TOP:])
        print(f"{f'{len(rows) - TOP} others':60} {calls:7,} {ms:10,.2f} {ms / total:7.1%}")
