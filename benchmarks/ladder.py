"""The classic ladder of optimisations, climbed on this machine: each rung keeps what those below it brought."""

import dataclasses
from pathlib import Path

import torch

from benchmarks.measure import Row
from benchmarks.train import Variant, measure
from model import GPTConfig
from system import runtime
from training import costs

FIRST = {
    "dtype": "float32",
    "onednn": False,
    "attention": "naive",
    "pad_vocabulary": False,
    "fused": False,
    "compile": False,
    "keep_memory": False,
    "loss": "plain",
}
ALL = ("cuda", "mps", "cpu")
RUNGS = (  # name, what it adds, the devices that can climb it
    ("float32, naive attention", {}, ALL),
    ("TF32 matrix products", {"dtype": "tf32"}, ("cuda",)),
    ("oneDNN for float32 products", {"onednn": True}, ("cpu",)),
    ("bfloat16 autocast", {"dtype": "bfloat16"}, ALL),
    ("torch.compile", {"compile": True}, ("cuda",)),
    ("SDPA attention", {"attention": "sdpa"}, ALL),
    ("padded vocabulary", {"pad_vocabulary": True}, ALL),
    ("fused AdamW", {"fused": True}, ALL),
    ("freed memory is kept", {"keep_memory": True}, ("cpu",)),
    ("logits become their gradient", {"loss": "ours"}, ("cpu",)),
    ("attention in blocks", {"attention": "ours"}, ("cpu",)),
)


def run(settings):
    """The rows of `python bench.py ladder`, and the bar chart."""
    device = runtime.pick_device(settings.device)
    sizes = {"B": 16, "T": 1024, "warmup": 5} if device.type == "cuda" else {"B": 4, "T": 256, "warmup": 3}
    variant = Variant(device=device.type, runs=settings.runs, **FIRST | sizes)
    tokens, peak = variant.B * variant.T, costs.peak_flops(device, torch.bfloat16)
    limit = peak / costs.flops_per_token(GPTConfig(), variant.T)
    print(f"GPT-2 124M, B = {variant.B}, T = {variant.T}; mfu against {peak / 1e12:.2f} TFLOP/s in bfloat16")
    rows, speeds = [], []
    for name, adds, devices in RUNGS:
        if device.type not in devices:
            rows.append(Row(f"ladder/{name}", "tok/s", None, None, "", limit, f"not climbed on a {device.type}"))
            print(f"{name:30} not climbed on a {device.type}", flush=True)
            continue
        variant = dataclasses.replace(variant, **adds)
        result = measure(variant)
        speeds.append(tokens / result.median)
        over_last, over_first = speeds[-1] / speeds[max(0, len(speeds) - 2)], speeds[-1] / speeds[0]
        note = (
            f"{result.median * 1000:,.0f} ms a step, {over_last:.2f} x the rung before, {over_first:.2f} x the first,"
            f" {speeds[-1] / limit:.0%} mfu, {result.peak / 1e9:.2f} GB, spread {result.spread:.0%}"
        )
        print(f"{name:30} {speeds[-1]:>10,.0f} tok/s  {note}", flush=True)
        rows.append(Row(f"ladder/{name}", "tok/s", speeds[-1], speeds[0], "the first rung", limit, note))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else runtime.cpu_name()
    draw(rows, f"GPT-2 124M, B = {variant.B}, T = {variant.T}, on {name}", Path("log") / "ladder.png")
    return rows


def draw(rows, title, path):
    """The bar chart: tokens a second, rung by rung, and what the matrix products alone would allow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    climbed = [row for row in rows if row.ours]
    figure, axis = plt.subplots(figsize=(9, 0.5 * len(climbed) + 1.5), layout="constrained")
    names = [row.name.removeprefix("ladder/") for row in climbed]
    bars = axis.barh(names, [row.ours for row in climbed], color="#0072B2")
    axis.bar_label(bars, [f"{row.ours:,.0f}  ({row.ratio:.1f}×)" for row in climbed], padding=4)
    axis.invert_yaxis()
    axis.axvline(climbed[0].limit, color="#666666", linestyle="--", label="the model's FLOPs at the device's peak")
    axis.set_xlabel("tokens a second")
    axis.set_title(title)
    figure.legend(loc="outside lower right", frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.2)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
    print(f"wrote {path}")
