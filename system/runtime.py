"""Where and how this process runs: device, number format, ranks, seeds, and the few collectives that we need.

Everything here is decided once, at start, by `start`, and handed around as one frozen `Runtime`.
"""

import contextlib
import ctypes
import datetime
import os
import platform
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists: its functions would keep that group, and its threads, past `stop`

from system.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    device: torch.device
    dtype: torch.dtype  # what matrix multiplications run in; weights stay float32
    rank: int = 0
    world_size: int = 1

    @property
    def master(self):
        """Whether this rank is the one that prints and writes."""
        return self.rank == 0

    def print(self, *args):
        if self.master:
            print(*args, flush=True)

    def autocast(self):
        """The context in which the model runs."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def to_device(self, tensor):
        """A CPU tensor on the device; by way of pinned memory, so that it is copied while the GPU computes."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def synchronize(self):
        """Wait until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def sum(self, tensor):
        """`tensor` summed over ranks, in place. (A mean is this, divided: older gloo has no AVG.)"""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor):
        """The largest of the ranks' `tensor`s, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def barrier(self):
        if self.world_size > 1:
            dist.barrier()

    def from_master(self, decide):
        """What the first rank's `decide()` returns (plain Python) or, if it is a `UserError`, raises, on every rank."""
        if self.world_size == 1:
            return decide()
        box = [None, None]
        if self.master:
            try:
                box[0] = decide()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, src=0, device=self.device)
        if box[1] is not None:
            raise UserError(box[1])
        return box[0]

    def seed_step(self, seed, step):
        """Seed the generators that training draws from (dropout), for this step and rank.

        The draws of a step are a function of (seed, step, rank) and nothing else, so there is no generator's state to
        save, and a resumed run draws what the undisturbed one would have drawn.
        """
        torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + self.rank) % 2**63)

    def stop(self):
        if self.world_size > 1:
            dist.destroy_process_group()


def start(device="auto", dtype="auto", seed=1337, timeout_s=300, deterministic=False, keep_memory=True):
    """Settle the device, dtype and ranks of this process and seed torch. Raises `UserError` where one isn't there.

    Under torchrun (RANK is set) this joins the process group: NCCL between GPUs, gloo between CPUs. `timeout_s` is how
    long a collective waits for a rank that doesn't come; `deterministic` asks CUDA for the same bits each time.
    """
    rank, local_rank, world_size = (int(os.environ.get(k, d)) for k, d in zip(RANK_VARIABLES, (0, 0, 1), strict=True))
    device = pick_device(device, local_rank)
    dtype = pick_dtype(dtype, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what stays float32
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
            torch.use_deterministic_algorithms(True)
            torch.backends.cuda.enable_mem_efficient_sdp(False)  # float32's fast attention has no such backward
    elif device.type == "cpu" and keep_memory:
        keep_freed_memory()
    if world_size > 1:
        if device.type == "mps":
            raise UserError("--device mps runs in one process; start it with plain python, or use --device cpu")
        join_process_group(device, datetime.timedelta(seconds=timeout_s))
    torch.manual_seed(seed)
    return Runtime(device, dtype, rank, world_size)


def join_process_group(device, timeout):
    """Meet the other ranks: NCCL between GPUs, gloo between CPUs.

    A group that torchrun restarts meets in the store of the one before it, where that one's addresses still stand; a
    prefix of its own keeps them apart. But each node counts its own restarts, so nodes that come and go need a store
    that is new each time, without a prefix: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun see to that.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore("restart " + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device_id
    )


RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")  # set by torchrun


def pick_device(name, local_rank=0):
    """`auto|cuda|mps|cpu` → a device that is there; under torchrun each rank gets the GPU of its local number."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, ok in there.items() if ok)
    if name not in there:
        raise UserError(f"--device {name}: expected one of auto, {', '.join(there)}")
    if not there[name]:
        has = ", ".join(kind for kind, ok in there.items() if ok)
        raise UserError(f"--device {name}: this machine (or this build of torch) has none; it has {has}")
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"rank {local_rank} has no GPU: {torch.cuda.device_count()} here; lower --nproc_per_node")
    return torch.device("cuda", local_rank)


def pick_dtype(name, device):
    """`auto` is bfloat16 where the hardware computes in it, else float16 on CUDA and float32 elsewhere."""
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--dtype {name}: expected one of auto, {', '.join(DTYPES)}")
        return DTYPES[name]
    if device.type == "cuda":  # without "emulation" a T4 or V100 would claim bfloat16, and crawl
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older torch: float32 is always right
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32


def cpu_name():
    """The processor as it calls itself: `AMD EPYC`."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # absent in older torch
    return capabilities.get("cpu_name") or platform.processor() or platform.machine()


def is_lost_rank(error):
    """Whether a RuntimeError says that another rank died, hangs or can't be reached."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def is_out_of_memory(error):
    """Whether a RuntimeError says that memory ran out, on whichever device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def keep_freed_memory():
    """Tell glibc to keep freed memory instead of handing it back to the kernel.

    Otherwise each step's large tensors are mapped and page-faulted in anew, which on a CPU takes about as long as the
    matrix multiplications. Linux with glibc only; elsewhere it does nothing.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)
