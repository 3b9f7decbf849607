"""Several devices, one model: wrapped from outside, so that model.py stays single-device.

    none        every device holds all; gradients are averaged (DistributedDataParallel)
    optimizer   the same, but each device keeps and computes only its share of the optimizer's state (ZeRO stage 1)
    full        weights, gradients and optimizer state are all shared out; a block is gathered when it computes (FSDP2)

Checkpoints don't know of it: what is gathered has the names, shapes and form that one device would have written.
"""

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model import GPT
from system.errors import UserError

NONE, OPTIMIZER, FULL = "none", "optimizer", "full"


def wrap_model(model, cfg, rt):
    """(the model as evaluation calls it, the model as training calls it): compiled where asked, then distributed."""
    compiled = cfg.compile if cfg.compile is not None else rt.device.type == "cuda"
    if cfg.shard == FULL and rt.world_size > 1:
        fully = shard_fully(model, rt, cfg.compile_backend if compiled else None)
        return fully, fully
    eval_model = torch.compile(model, backend=cfg.compile_backend) if compiled else model
    if rt.world_size == 1:
        return eval_model, eval_model
    device_ids = [rt.device.index] if rt.device.type == "cuda" else None
    return eval_model, DistributedDataParallel(eval_model, device_ids=device_ids, gradient_as_bucket_view=True)


def shard_fully(model, rt, compile_backend=None):
    """Shard `model` in place: each block is a unit, and what is left (the embeddings, ln_f and the head) is another.

    Compiled block by block, since torch.compile can't see through what gathers them.
    """
    if rt.dtype == torch.float16:
        raise UserError(
            "dtype = float16 finds its scale by whole gradients, and shard = full divides them: use bfloat16, or"
            " shard = optimizer"
        )
    mesh = init_device_mesh(rt.device.type, (rt.world_size,))
    for block in model.transformer.h:
        if compile_backend:
            block.compile(backend=compile_backend)
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def synchronize_gradients(train_model, now):
    """Whether the next backward pass averages the gradients over ranks, or only adds this rank's up."""
    if isinstance(train_model, FSDPModule):
        train_model.set_requires_gradient_sync(now)
        train_model.set_is_last_backward(now)
    elif isinstance(train_model, DistributedDataParallel):
        train_model.require_backward_grad_sync = now


def clip_gradients(model, max_norm):
    """Scale the gradients down to `max_norm`; returns the norm that they had, over all parameters and ranks."""
    return whole(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm))


def whole(tensor):
    """A tensor of which ranks hold parts, gathered; any other as it is. All ranks must take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tree, keep):
    """Nested dicts and lists with each shared tensor whole: on the CPU where `keep`, else empty to save memory."""
    seen = {}  # tied tensors stay tied

    def gather(value):
        if isinstance(value, dict):
            return {key: gather(item) for key, item in value.items()}
        if not isinstance(value, DTensor):
            return value
        key = value.to_local().data_ptr()
        if key not in seen or key == 0:  # an empty part has no address
            full = value.full_tensor()
            seen[key] = full.cpu() if keep else full.new_empty(0)
        return seen[key]

    return gather(tree)


def model_state(model, keep):
    """The plain state dict of `model`, whole where `keep`. All ranks must take part."""
    return gathered(model.state_dict(), keep)


def whole_model(model, rt):
    """`model`, or where it is shared out, a whole copy that each rank can use alone. All ranks must take part."""
    if not isinstance(model, FSDPModule):
        return model
    state = model_state(model, keep=True)
    with torch.device("meta"):
        copy = GPT(model.config)
    copy.load_state_dict(state, assign=True)
    return copy.to(rt.device)


def optimizer_state(optimizer, master):
    """The state dict that one device would have, whole on the master. All ranks must take part."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if master else None
    return gathered(optimizer.state_dict(), master)


def load_optimizer_state(optimizer, state):
    """Give each rank its part of a whole state dict."""
    params = [p for group in optimizer.param_groups for p in group["params"]]  # numbered so in a state dict

    def part(value, p):
        if isinstance(p, DTensor) and value.shape == p.shape:
            return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
        return value

    parts = {i: {name: part(v, params[i]) for name, v in values.items()} for i, values in state["state"].items()}
    optimizer.load_state_dict(state | {"state": parts})
