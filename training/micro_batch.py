"""How large a micro-batch fits: `--B auto`. Tried out on a GPU, reckoned from `costs.memory` elsewhere.

A model that is shared out whole can't be tried by one rank alone, so it is reckoned too.
"""

import dataclasses
import os
from pathlib import Path

import torch

from system import runtime
from system.errors import UserError
from training import costs

MARGIN = 0.05  # of the memory is left for what neither a trial nor the estimate sees: NCCL, fragments, a sample's cache


def settle_B(cfg, rt, model, state=None):
    """`cfg` with B as a number: for "auto" the largest power of two that fits and divides a step's windows.

    A resumed run keeps the B that it had, where that still divides them, so that it goes on to the bit. Raises
    `UserError` where not even one sequence fits.
    """
    if cfg.B != "auto":
        return cfg
    windows = cfg.total_batch_size // (cfg.T * rt.world_size)  # of this rank in a step
    had = state["train_config"]["B"] if state is not None else None
    if had is not None and windows % had == 0:
        B = had
    else:
        B = largest_that_fits(cfg, rt, model, windows)
    if B == 0:
        raise UserError(f"--B auto: not even one sequence of T = {cfg.T} fits on {rt.device}; lower T or the model")
    rt.print(f"--B auto: {B} sequences of {cfg.T} tokens" + " as before" * (had == B))
    return dataclasses.replace(cfg, B=B)


def largest_that_fits(cfg, rt, model, windows):
    """The largest power of two that divides `windows` and fits on every rank, or 0."""
    if rt.device.type == "cuda" and cfg.shard != "full":
        fits = try_on_gpu(cfg, rt, model)
    else:
        fits = reckon(cfg, rt, model.config)
    largest = next((B for B in powers_of_two(windows) if fits(B)), 0)
    return -int(rt.max(torch.tensor(-largest, device=rt.device)))  # the least of all ranks


def powers_of_two(windows):
    """The powers of two that divide `windows`, the largest first."""
    return [2**k for k in range(windows.bit_length() - 1, -1, -1) if windows % 2**k == 0]


def try_on_gpu(cfg, rt, model):
    """A function of B: do two micro-steps of the model, uncompiled, leave room for the optimizer's state?"""
    needs = costs.memory(model.config, 1, cfg.T, rt.dtype, cfg.optimizer)
    needs = costs.sharded(needs, model.config, cfg.shard, rt.world_size)
    room = needs.optimizer + int(MARGIN * torch.cuda.get_device_properties(rt.device).total_memory)

    def fits(B):
        try:
            taken = torch.empty(room, dtype=torch.uint8, device=rt.device)
            idx = torch.zeros(B, cfg.T, dtype=torch.int64, device=rt.device)
            for _ in range(2):  # the second begins with the first one's gradients in memory
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
        result = fits(B)  # its tensors are gone once it has returned
        torch.cuda.empty_cache()
        return result

    return fits_and_cleans


def reckon(cfg, rt, config):
    """A function of B: does `costs.memory` stay below this rank's share of the memory that is free now?"""
    if rt.device.type == "cuda":
        free = torch.cuda.mem_get_info(rt.device)[0] * (1 - MARGIN)
    else:
        free = available_memory() * (1 - MARGIN) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    def fits(B):
        memory = costs.memory(config, B, cfg.T, rt.dtype, cfg.optimizer, cfg.activation_checkpointing, rt.device.type)
        return costs.sharded(memory, config, cfg.shard, rt.world_size).total <= free

    return fits


def available_memory(proc="/proc/meminfo", cgroup="/sys/fs/cgroup"):
    """Bytes that can be allocated without swapping: what Linux calls available, within the limit of a container.

    Elsewhere half of the machine's memory, as nothing tells how much is in use.
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
