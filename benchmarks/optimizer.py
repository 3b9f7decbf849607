"""The time of Muon's step: ours, which splits query, key and value and works in batches, against torch.optim.Muon."""

import torch

from benchmarks.measure import Row, time_in_turn
from system import runtime
from training.muon import Muon

SHAPES = {"2M": (4, 192), "124M": (12, 768)}  # layers and width: of config/quickstart.py and of GPT-2


def muon_step(kind, n_layer, C, device, **settings):
    """The `step` of an optimizer of class `kind` for the matrices of a GPT-2's blocks, each with a gradient."""
    params = []
    for shape in n_layer * [(3 * C, C), (C, C), (4 * C, C), (C, 4 * C)]:
        p = torch.nn.Parameter(0.02 * torch.randn(shape, device=device))
        p.grad = torch.randn_like(p)
        params.append(p)
    return kind(params, lr=1e-3, weight_decay=0.1, momentum=0.95, **settings).step


def run(settings):
    """The rows of `python bench.py optimizer`."""
    device, dtype = runtime.pick_device(settings.device), runtime.DTYPES[settings.dtype]
    rt = runtime.Runtime(device, dtype)
    rows = []
    for size, (n_layer, C) in SHAPES.items():
        steps = {
            "ours": muon_step(Muon, n_layer, C, device, dtype=dtype),
            "torch": muon_step(torch.optim.Muon, n_layer, C, device, adjust_lr_fn="match_rms_adamw"),
        }
        times = time_in_turn(steps, settings.runs, synchronize=rt.synchronize)
        (ours, spread), (baseline, _) = times["ours"], times["torch"]
        note = f"products in {settings.dtype} against bfloat16; spread {spread:.0%}"
        name = f"optimizer/muon/{size}"
        row = Row(name, "ms", 1000 * ours, 1000 * baseline, "torch.optim.Muon", None, note, lower_is_better=True)
        print(f"{name}: {row.ours:.1f} against {row.baseline:.1f} ms a step; {note}", flush=True)
        rows.append(row)
    return rows
