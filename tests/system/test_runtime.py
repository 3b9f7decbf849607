"""The runtime picks the device and the dtype by name, or reports what is available."""

import pytest
import torch

from system import runtime
from system.errors import UserError


def test_pick_device_names_the_devices_that_are_available():
    assert runtime.pick_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"--device cuda: not available on this machine .* one of .*cpu"):
            runtime.pick_device("cuda")
    with pytest.raises(UserError, match="--device gpu: expected one of auto, cuda, mps, cpu"):
        runtime.pick_device("gpu")


def test_pick_dtype_takes_each_name():
    names = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    assert names == runtime.DTYPES
    del names["tf32"]
    for name, dtype in names.items():
        assert runtime.pick_dtype(name, torch.device("cpu")) is dtype
        assert runtime.dtype_name(dtype) == name
    with pytest.raises(UserError, match="--dtype half: expected one of auto, float32"):
        runtime.pick_dtype("half", torch.device("cpu"))


def test_pick_dtype_refuses_tf32_where_nothing_computes_in_it():
    with pytest.raises(UserError, match="--dtype tf32: cpu does not compute in it; use float32, bfloat16 or auto"):
        runtime.pick_dtype("tf32", torch.device("cpu"))


def test_seed_step_gives_each_rank_and_step_its_own_dropout():
    def mask(rank, step):
        runtime.Runtime(torch.device("cpu"), torch.float32, rank, world_size=2).seed_step(seed=1337, step=step)
        return torch.nn.functional.dropout(torch.ones(64), 0.5).tolist()

    masks = [mask(rank, step) for rank in (0, 1) for step in (0, 1)]
    assert len({tuple(values) for values in masks}) == 4
    assert mask(1, 0) == masks[2], "a resumed run draws the same"


@pytest.mark.cuda
def test_start_rounds_float32_products_only_in_tf32():
    """The error of a product of float32 matrices, relative to float64: 2^-24 rounds to 1e-7, TF32's 2^-11 to 1e-4."""
    a, b = (torch.randn(512, 512, device="cuda") for _ in range(2))
    exact = a.double() @ b.double()
    for name, low, high in (("float32", 0, 1e-5), ("tf32", 1e-5, 1e-2)):
        rt = runtime.start("cuda", name)
        assert (rt.precision, rt.dtype) == (name, torch.float32)
        assert low < ((a @ b).double() - exact).norm() / exact.norm() < high
