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
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    assert names == runtime.DTYPES
    for name, dtype in names.items():
        assert runtime.pick_dtype(name, torch.device("cpu")) is dtype
        assert runtime.dtype_name(dtype) == name
    with pytest.raises(UserError, match="--dtype half: expected one of auto, float32"):
        runtime.pick_dtype("half", torch.device("cpu"))
