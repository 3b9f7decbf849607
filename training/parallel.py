"""Training one model on several devices. The model is wrapped from outside, so model.py stays single-device.

    none        every device holds everything; gradients are averaged (DistributedDataParallel)
    optimizer   the same, but each device keeps and updates only its part of the optimizer's state (ZeRO stage 1)
    full        weights, gradients and optimizer state are divided; each block is gathered while it computes (FSDP2)

Checkpoints do not depend on the mode: tensors are gathered under the names and in the shapes of one device.
"""

import math

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from model import GPT
from system.errors import UserError
from training.compilation import compile_settings

NONE, OPTIMIZER, FULL = "none", "optimizer", "full"
SHARD_MODES = {NONE: "nothing", OPTIMIZER: "the optimizer's state", FULL: "weights, gradients and optimizer state"}


def wrap_model(model, cfg, rt):
    """(the model that evaluation calls, the model that training calls): compiled if asked, then distributed."""
    settings = compile_settings(cfg) if cfg.compiles(rt.device.type) else None
    if cfg.shard == FULL and rt.world_size > 1:
        sharded = shard_fully(model, rt, settings)
        return sharded, sharded
    eval_model = torch.compile(model, **settings) if settings else model
    if rt.world_size == 1:
        return eval_model, eval_model
    device_ids = [rt.device.index] if rt.device.type == "cuda" else None
    train_model = DistributedDataParallel(eval_model, device_ids=device_ids, gradient_as_bucket_view=True)
    if rt.world_size > 2:  # a sum of two numbers has no order
        fix_buckets(train_model, cfg, rt)
    return eval_model, train_model


def fix_buckets(train_model, cfg, rt):
    """Let DDP choose its final buckets before the first step, by a backward pass whose gradients are discarded.

    It sums the gradients of all ranks in buckets, which it divides again after its first backward pass. The order in
    which the ranks are summed depends on a gradient's place in its bucket. Without this, the first step after a start
    would be rounded otherwise than the same step of a run that was not interrupted.
    """
    idx = torch.zeros(cfg.B, cfg.T, dtype=torch.int64, device=rt.device)
    with rt.autocast():
        loss = train_model(idx, idx)
    loss.backward()
    train_model.zero_grad(set_to_none=True)


def shard_fully(model, rt, compile_with=None):
    """Shard `model` in place: one unit for each block, one for the rest (embeddings, ln_f and head).

    With `compile_with`, settings of torch.compile, each block is compiled: the code that gathers them is not traced.
    """
    if rt.dtype == torch.float16:
        raise UserError(
            "dtype = float16 needs whole gradients to find its scale, and shard = full divides them: use bfloat16, or"
            " shard = optimizer"
        )
    mesh = init_device_mesh(rt.device.type, (rt.world_size,))
    for block in model.transformer.h:
        if compile_with:
            block.compile(**compile_with)
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def synchronize_gradients(train_model, last_micro_step):
    """Let the next backward pass average the gradients over ranks (`last_micro_step`), or only accumulate them."""
    if isinstance(train_model, FSDPModule):
        train_model.set_requires_gradient_sync(last_micro_step)
        train_model.set_is_last_backward(last_micro_step)
    elif isinstance(train_model, DistributedDataParallel):
        train_model.require_backward_grad_sync = last_micro_step


def clip_gradients(model, max_norm):
    """Scale the gradients down to `max_norm` (0: never). Returns the norm before clipping, over all ranks."""
    return gather(torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm or math.inf))


def gather(tensor):
    """The full tensor of a DTensor; any other tensor unchanged. Every rank must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor):
    """This rank's part of a DTensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_tree(tree, keep):
    """Gather the DTensors of a state dict: CPU copies if `keep`, else empty tensors. Every rank must call it."""
    seen = {}  # {address of the local part: gathered tensor}, so that tied tensors stay tied

    def visit(value):
        if isinstance(value, dict):
            return {key: visit(item) for key, item in value.items()}
        if not isinstance(value, DTensor):
            return value
        key = value.to_local().data_ptr()
        if key not in seen or key == 0:  # an empty local part has no address
            full = value.full_tensor()
            seen[key] = full.cpu() if keep else full.new_empty(0)
        return seen[key]

    return visit(tree)


def model_state(model, keep):
    """The plain state dict of `model`, complete where `keep`. Every rank must call it."""
    return gather_tree(model.state_dict(), keep)


def whole_model(model, rt):
    """`model`, or if it is sharded, a complete copy that each rank can use alone. Every rank must call it."""
    if not isinstance(model, FSDPModule):
        return model
    state = model_state(model, keep=True)
    with torch.device("meta"):
        copy = GPT(model.config)
    copy.load_state_dict(state, assign=True)
    copy.activation_checkpointing, copy.head_loss = model.activation_checkpointing, model.head_loss
    return copy.to(rt.device)


def optimizer_state(optimizer, master):
    """The state dict that one device would have, complete on the master. Every rank must call it."""
    if isinstance(optimizer, ZeroRedundancyOptimizer):
        optimizer.consolidate_state_dict(to=0)
        return optimizer.state_dict() if master else None
    return gather_tree(optimizer.state_dict(), master)


def load_optimizer_state(optimizer, state):
    """Load the tensors of a complete state dict; each rank keeps its part. Learning rates and the like stay as set."""
    params = [p for group in optimizer.param_groups for p in group["params"]]  # in the order of a state dict's ids

    def part(value, p):
        if isinstance(p, DTensor) and value.shape == p.shape:
            return distribute_tensor(value.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
        return value

    parts = {i: {name: part(v, params[i]) for name, v in values.items()} for i, values in state["state"].items()}
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [group | {"params": saved["params"]} for group, saved in pairs]
    optimizer.load_state_dict({"state": parts, "param_groups": groups})
