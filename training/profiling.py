"""`--profile`: print the parts of a step and the operators that take most of its time, and write a Chrome trace.

`--nvtx` marks the same step for NVIDIA's profiler instead:

    nsys profile --capture-range=cudaProfilerApi --capture-range-end=stop python train_gpt2.py --nvtx
"""

import contextlib
import tempfile
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from system.files import AtomicFile
from training import costs, parts

TOP = 15  # operators shown
WARM_UP = 5  # steps before the profiled one: by then everything is compiled and the memory is allocated


class StepProfiler:
    """Profiles one warmed-up step on the master; other ranks are not profiled. Does nothing without `--profile`."""

    def __init__(self, cfg, rt, start_step, model):
        self.cfg, self.rt, self.model = cfg, rt, model
        wanted = cfg.profile or cfg.nvtx
        self.step = min(start_step + WARM_UP, cfg.max_steps - 1) if wanted else None
        self.profile = None
        self.contexts = contextlib.ExitStack()  # open during the profiled step

    def start(self, step):
        """Call before each step."""
        if step != self.step:
            return
        self.rt.synchronize()  # the step before may still be running on the device
        if not self.rt.master:
            return
        on_gpu = self.rt.device.type == "cuda"
        if not self.cfg.compiles(self.rt.device.type):
            self.contexts.enter_context(parts.marked(self.model))
        if self.cfg.profile:
            cuda = [ProfilerActivity.CUDA] if on_gpu else []
            self.profile = self.contexts.enter_context(profile(activities=[ProfilerActivity.CPU, *cuda]))
        if self.cfg.nvtx:
            self.contexts.enter_context(torch.cuda.profiler.profile())  # tells nsys to record
            self.contexts.enter_context(torch.autograd.profiler.emit_nvtx())
        self.clock = time.perf_counter()

    def stop(self, step):
        """Call after each step. Returns whether this step was profiled."""
        if step != self.step:
            return False
        self.rt.synchronize()
        if self.rt.master:
            step_ms = 1000 * (time.perf_counter() - self.clock)
            self.contexts.close()
            if self.profile is not None:
                self.report(step, step_ms)
        return True

    def report(self, step, step_ms):
        """Print the tables of parts and of operators, and write the trace."""
        on_gpu = self.rt.device.type == "cuda"
        flops = costs.flops_by_part(self.model.config, self.cfg.T)
        print("\n".join(parts.table(parts.milliseconds(self.profile, on_gpu), flops, step_ms)))
        print_top(self.profile, on_gpu)
        write_trace(Path(self.cfg.log_dir) / f"trace_{step:05d}.json.gz", self.profile)


def write_trace(path, profiler):
    """Write a Chrome trace (gzip), which ui.perfetto.dev and chrome://tracing open. A full disk does not raise."""
    try:
        with tempfile.TemporaryDirectory() as folder, AtomicFile(path) as f:
            trace = Path(folder) / "trace.json.gz"  # torch compresses files of this name
            profiler.export_chrome_trace(str(trace))
            f.write(trace.read_bytes())
    except OSError as error:
        print(f"warning: could not write {path} ({error.strerror})", flush=True)
        return
    print(f"wrote {path}: open it in ui.perfetto.dev or chrome://tracing", flush=True)


def print_top(profiler, on_gpu):
    """Print a GPU's kernels by their time or, without a GPU, operators by their own time (callees excluded)."""
    averages = profiler.key_averages()
    if on_gpu:
        averages = [a for a in averages if a.device_type == DeviceType.CUDA and not a.is_user_annotation]
    own = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds, over all calls
    rows = sorted(((getattr(a, own) / 1000, a.count, a.key) for a in averages), reverse=True)
    total = sum(ms for ms, _, _ in rows)
    what = "kernel" if on_gpu else "operator"
    if not total:
        print(f"one step: the profiler saw no {what}s (on a GPU it needs CUPTI and permission to read counters)")
        return
    print(f"one step: {total:,.1f} ms in {what}s")
    print(f"{what:60} {'calls':>7} {'ms':>10} {'share':>7}")
    for ms, calls, name in rows[:TOP]:
        print(f"{name[:60]:60} {calls:7,} {ms:10,.2f} {ms / total:7.1%}")
    if rows[TOP:]:
        ms, calls = sum(row[0] for row in rows[TOP:]), sum(row[1] for row in rows[TOP:])
        print(f"{f'{len(rows) - TOP} others':60} {calls:7,} {ms:10,.2f} {ms / total:7.1%}")
