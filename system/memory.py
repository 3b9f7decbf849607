"""How much memory this process has used at most, on the device that it computes on."""

import sys
from pathlib import Path

import torch


def peak_memory(device):
    """Bytes: on CUDA the most that tensors occupied since the last reset, on a CPU the most that the process held.

    On mps the memory held now, as torch keeps no peak there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return peak_rss()


def peak_rss():
    """The most memory this process has held, bytes. (Linux's ru_maxrss begins with what the parent held.)"""
    measured = memory_status("VmHWM")
    if measured is not None:
        return measured
    import resource  # absent on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def memory_status(field):
    """Bytes that Linux gives for `field`: VmHWM, the peak; RssAnon, what this process alone holds. None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text(encoding="ascii").splitlines())
    return next(1024 * int(line[1]) for line in lines if line[0] == f"{field}:")
