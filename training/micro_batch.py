"""`--B auto`: the largest micro-batch that fits: by trial on a GPU, by the estimate `costs.rank_memory` elsewhere.

A fully sharded model needs all ranks for a trial, so it is estimated too.
"""

import dataclasses
import os
from pathlib import Path

import torch

from system import runtime
from system.errors import UserError
from training import costs

MARGIN = 0.05  # share of memory left for what a trial or estimate does not see: NCCL, fragmentation, a KV cache


def resolve_micro_batch(cfg, rt, model, state=None):
    """`cfg` with B as a number: for "auto" the largest power of two that fits and divides a step's windows.

    A resumed run keeps its B if that still divides them, so that it stays bit-identical. Raises `UserError` if not
    even one sequence fits.
    """
    if cfg.B != "auto":
        return cfg
    windows = cfg.total_batch_size // (cfg.T * rt.world_size)  # of this rank in a step
    before = state["train_config"]["B"] if state is not None else None
    if before is not None and windows % before == 0:
        B = before
    else:
        B = largest_that_fits(cfg, rt, model, windows)
    if B == 0:
        raise UserError(f"--B auto: not even one sequence of T = {cfg.T} fits on {rt.device}; lower T or the model")
    as_before = " as before" if before == B else ""
    rt.print(f"--B auto: {B} sequences of {cfg.T} tokens{as_before}")
    return dataclasses.replace(cfg, B=B)


def largest_that_fits(cfg, rt, model, windows):
    """The largest power of two that divides `windows` and fits on every rank, or 0."""
    if rt.device.type == "cuda" and cfg.shard != "full":
        fits = fits_by_trial(cfg, rt, model)
    else:
        fits = fits_by_estimate(cfg, rt, model.config)
    largest = next((B for B in powers_of_two(windows) if fits(B)), 0)
    if rt.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(rt.device)  # the run's own peak is logged
    return -int(rt.max(torch.tensor(-largest, device=rt.device)))  # the smallest of all ranks


def powers_of_two(windows):
    """The powers of two that divide `windows`, the largest first."""
    return [2**k for k in range(windows.bit_length() - 1, -1, -1) if windows % 2**k == 0]


def fits_by_trial(cfg, rt, model):
    """A function of B: whether two micro-steps of the uncompiled model leave room for the optimizer's state."""
    room = costs.rank_memory(model.config, cfg, 1, rt.dtype, "cuda", rt.world_size).optimizer
    room += int(MARGIN * torch.cuda.get_device_properties(rt.device).total_memory)

    def fits(B):
        try:
            taken = torch.empty(room, dtype=torch.uint8, device=rt.device)
            idx = torch.zeros(B, cfg.T, dtype=torch.int64, device=rt.device)
            for _ in range(2):  # the second one starts with the first one's gradients in memory
                with rt.autocast():
                    loss = model(idx, idx)
                loss.backward()
            del taken
        except RuntimeError as error:
            if not runtime.is_out_of_memory(error):
                raise
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return True

    def fits_and_cleans(B):
        result = fits(B)  # its tensors are freed when it returns
        torch.cuda.empty_cache()
        return result

    return fits_and_cleans


def fits_by_estimate(cfg, rt, config):
    """A function of B: whether the estimate stays below this rank's share of the memory that is free now."""
    free = free_memory(rt.device)

    def fits(B):
        return costs.rank_memory(config, cfg, B, rt.dtype, rt.device.type, rt.world_size).total <= free

    return fits


def free_memory(device):
    """Bytes of a device that this rank can still use: its share of what is free now, less a margin."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * (1 - MARGIN)
    return available_memory() * (1 - MARGIN) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def available_memory(proc="/proc/meminfo", cgroup="/sys/fs/cgroup"):
    """Bytes that can be allocated without swapping: Linux's MemAvailable, within the limit of a container.

    Elsewhere half of the machine's memory, because the amount in use is unknown.
    """
    try:
        lines = dict(line.split(":", 1) for line in Path(proc).read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit, used = ((Path(cgroup) / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
