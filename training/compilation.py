"""torch.compile for a run: its backend and mode, and a fault of torch that is avoided."""

import torch

INDUCTOR = "inductor"
REDUCE_OVERHEAD = "reduce-overhead"  # CUDA graphs: one launch instead of one per kernel
MODES = ("default", "max-autotune-no-cudagraphs", REDUCE_OVERHEAD)


def compile_settings(cfg):
    """The keyword arguments of `torch.compile` for a run."""
    if cfg.compile_backend != INDUCTOR:
        return {"backend": cfg.compile_backend}  # only inductor has modes
    if torch.__version__ < (2, 11):
        switch_off_mix_order_reduction()
    return {"backend": INDUCTOR, "mode": cfg.compile_mode}


def switch_off_mix_order_reduction():
    """Switch off the fusion of torch 2.10's inductor that corrupts gradients of biases under bfloat16 autocast.

    pytorch issue 190796, fixed in 2.11. A later fault of the same fusion (193061) concerns LayerNorms whose weights are
    slices of one tensor, which this model does not have. The tests compare compiled gradients with eager ones.
    """
    import torch._inductor.config as inductor  # slow to import, and needed only here

    inductor.triton.mix_order_reduction = False


def keeps_gradients(cfg, device_type):
    """Whether gradients keep their memory between updates, zeroed instead of freed.

    CUDA graphs need it: without gradients to add to, autograd keeps the graph's own output as the gradient, which the
    next micro-step overwrites (pytorch issue 169545).
    """
    return device_type == "cuda" and cfg.compiles(device_type) and cfg.compile_mode == REDUCE_OVERHEAD
