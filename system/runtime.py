"""The runtime of this process: device, dtype, ranks, seeds, and the collectives that training needs.

`start` decides all of it once, and the program passes it around as one frozen `Runtime`.
"""

import contextlib
import ctypes
import datetime
import os
import platform
import sys
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.distributed.nn  # imported before a group exists: its functions would keep that group and its threads alive

from system.errors import RankError, UserError, describe_disk_error
from system.terminal import Terminal


def dtype_name(dtype):
    """Return the name of a torch dtype: "bfloat16" for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


TF32 = "tf32"  # float32 tensors; CUDA rounds the inputs of their products to 10 bits of mantissa
DTYPES = {"float32": torch.float32, TF32: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where this process runs: its device, the dtype of its computations, and its rank among the processes."""

    device: torch.device
    dtype: torch.dtype  # of matrix multiplications under autocast; weights stay float32
    rank: int = 0
    world_size: int = 1
    tf32: bool = False  # matrix products of float32 tensors in TF32
    terminal: Terminal = field(default_factory=Terminal, repr=False, compare=False)

    @property
    def precision(self):
        """The name in `DTYPES` of the format of matrix products."""
        return TF32 if self.tf32 else dtype_name(self.dtype)

    @property
    def master(self):
        """Whether this is rank 0, which alone prints and writes files."""
        return self.rank == 0

    def print(self, *args):
        """Print a line on the master only. Never raises and never blocks for long, see `Terminal`."""
        if self.master:
            self.terminal.print(*args)

    def autocast(self):
        """Return the context for a forward pass: autocast to `dtype`, or nothing for float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def to_device(self, tensor):
        """Copy a CPU tensor to the device; to a GPU from pinned memory, so that the copy overlaps with computation."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def synchronize(self):
        """Wait until the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def sum(self, tensor):
        """Sum `tensor` over the ranks, in place. (For a mean, divide the sum: older versions of gloo have no AVG.)"""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def max(self, tensor):
        """Take the elementwise maximum of `tensor` over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def barrier(self):
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def from_master(self, decide):
        """Call `decide()` on rank 0 only; return its (picklable) result, or raise its `UserError`, on every rank.

        A full disk or a path that cannot be written is a `UserError` too.
        """
        if self.world_size == 1:
            return decide()
        result, message = None, None
        if self.master:
            try:
                result = decide()
            except UserError as error:
                message = str(error)
            except OSError as error:
                message = describe_disk_error(error)
                if message is None:
                    raise
        broadcast = [result, message]
        dist.broadcast_object_list(broadcast, src=0, device=self.device)
        result, message = broadcast
        if message is not None:
            raise UserError(message)
        return result

    def seed_step(self, seed, step):
        """Seed torch's default generators (dropout) for one training step of this rank.

        The random numbers of a step depend on (seed, step, rank) only. So a checkpoint holds no generator state, and a
        resumed run draws the same numbers as an uninterrupted one.
        """
        torch.manual_seed(((seed * 1_000_003 + step) * 65_537 + self.rank) % 2**63)

    def close(self):
        """Leave the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


def start(device="auto", dtype="auto", seed=1337, timeout_s=300, deterministic=False, keep_memory=True):
    """Choose the device and dtype, join the process group, seed torch, and return the `Runtime`.

    Under torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE, the ranks communicate by NCCL (GPUs) or gloo (CPUs).
    `timeout_s`: seconds that a collective waits for the other ranks. `deterministic`: choose CUDA algorithms that give
    the same bits in every run. `keep_memory`: see `keep_freed_memory`. Raises `UserError` if the device is missing.
    """
    rank, local_rank, world_size = read_ranks()
    device = pick_device(device, local_rank)
    tf32 = dtype == TF32
    dtype = pick_dtype(dtype, device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        exact = dtype == torch.float32 and not tf32
        torch.set_float32_matmul_precision("highest" if exact else "high")  # "high" is TF32
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when CUDA starts
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cuda.enable_mem_efficient_sdp(not deterministic)  # its backward pass is not deterministic
    elif device.type == "cpu" and keep_memory:
        keep_freed_memory()
    if world_size > 1:
        if device.type == "mps":
            raise UserError("--device mps supports one process only: start it without torchrun, or use --device cpu")
        join_process_group(device, datetime.timedelta(seconds=timeout_s))
    torch.manual_seed(seed)
    return Runtime(device, dtype, rank, world_size, tf32)


def read_ranks():
    """Return (rank, local rank, world size), which torchrun sets; (0, 0, 1) without it. Raises `UserError`."""
    names = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}  # with their defaults
    texts = {name: os.environ.get(name, str(default)) for name, default in names.items()}
    for name, text in texts.items():
        if not text.isdecimal():
            raise UserError(f"{name} = {text!r} in the environment: expected a number, as torchrun sets it")
    world_size, rank, local_rank = map(int, texts.values())
    if not 0 <= rank < world_size:
        raise UserError(
            f"RANK = {rank} and WORLD_SIZE = {world_size} in the environment: expected 0 ≤ RANK < WORLD_SIZE"
        )
    return rank, local_rank, world_size


def join_process_group(device, timeout):
    """Connect to the other ranks, by NCCL between GPUs or gloo between CPUs.

    A group restarted by torchrun uses the same key-value store as the group before it, which still holds the old
    addresses; a prefix with the number of restarts separates them. This does not work if nodes join or leave, because
    each node counts its own restarts. Then the store must be new after each restart and the prefix absent, which is
    what TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 does in torchrun.
    """
    store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = dist.PrefixStore("restart " + os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend, device_id = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timeout, device_id=device_id
    )


def pick_device(name, local_rank=0):
    """Return the torch device for `auto|cuda|mps|cpu`; `auto` is the first of cuda, mps, cpu that is available.

    Under torchrun each rank gets the GPU with its local rank. Raises `UserError` if there is no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [kind for kind, is_available in available.items() if is_available]
    if name == "auto":
        name = usable[0]
    if name not in available:
        raise UserError(f"--device {name}: expected one of auto, {', '.join(available)}")
    if name not in usable:
        raise UserError(
            f"--device {name}: not available on this machine or in this build of torch; use auto or one of"
            f" {', '.join(usable)}"
        )
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise RankError(
            f"rank {local_rank} has no GPU: this machine has {torch.cuda.device_count()}; lower --nproc_per_node"
        )
    return torch.device("cuda", local_rank)


def pick_dtype(name, device):
    """Return the torch dtype for `auto` or a name in `DTYPES`.

    `auto` is bfloat16 if the hardware computes in it, else float16 on CUDA and float32 on other devices.
    """
    if name != "auto":
        if name not in DTYPES:
            raise UserError(f"--dtype {name}: expected one of auto, {', '.join(DTYPES)}")
        if name == TF32:
            check_tf32(device)
        return DTYPES[name]
    if device.type == "cuda":  # a T4 or V100 supports bfloat16 only by slow emulation
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float32
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch: then float32
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if fast else torch.float32


def check_tf32(device):
    """Raise `UserError` unless the device computes in TF32: NVIDIA's GPUs since Ampere (compute capability 8.0)."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise UserError(f"--dtype {TF32}: {device} does not compute in it; use float32, bfloat16 or auto")


def cpu_name():
    """Return the name of the processor, e.g. `AMD EPYC`."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older torch
    return capabilities.get("cpu_name") or platform.processor() or platform.machine()


def is_lost_rank(error):
    """Whether a RuntimeError means that another rank died, hangs or cannot be reached."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


def is_out_of_memory(error):
    """Whether a RuntimeError means that a device or the host is out of memory."""
    signs = ("can't allocate memory", "MPS backend out of memory")  # plain RuntimeErrors, of a CPU and of mps
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


def keep_freed_memory():
    """Make glibc keep freed memory instead of returning it to the kernel.

    Otherwise the kernel maps the large tensors of every step again, page by page, which on a CPU takes about as long as
    the matrix multiplications. Has an effect on Linux with glibc only.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, 64 << 20)
