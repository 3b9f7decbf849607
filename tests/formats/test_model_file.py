"""Names and shapes of a GPT-2's parameters, and the checks that every reader shares."""

import pytest
import torch
from models import SHAPE, small_gpt

from formats.hugging_face import PRETRAINED
from formats.model_file import ModelFile, checked_shape, parameter_shapes
from model import GPT, GPTConfig
from system.errors import UserError

NAME = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def tensors():
    return small_gpt().to_tensors()


def model_file(tensors, **changes):
    return ModelFile(SHAPE | changes, "byte", "FILE", lambda: tensors)


@pytest.mark.parametrize("shape", [SHAPE, SHAPE | {"n_layer": 3, "vocab_size": 257}, *PRETRAINED.values()])
def test_parameter_shapes_are_those_of_gpt(shape):
    with torch.device("meta"):
        model = GPT(GPTConfig(**shape))
    assert list(parameter_shapes(shape)) == [(name, tuple(p.shape)) for name, p in model.to_tensors().items()]


@pytest.mark.parametrize("value", [None, "2", 2.0, True, 0, -1])
def test_checked_shape_refuses_what_is_no_positive_integer(value):
    assert checked_shape(SHAPE | {"dropout": 0.1}, "FILE") == SHAPE
    with pytest.raises(UserError, match=rf"^FILE: n_layer = {value!r} in its config, expected a positive integer"):
        checked_shape(SHAPE | {"n_layer": value}, "FILE")


def test_tensors_leave_out_the_tied_head(tensors):
    head = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    assert model_file(tensors | head).tensors() == tensors
    head["lm_head.weight"][0, 0] += 1
    with pytest.raises(UserError, match=r"FILE: lm_head.weight differs from transformer.wte.weight"):
        model_file(tensors | head).tensors()


def test_tensors_that_do_not_match_the_shape_are_refused(tensors):
    missing = {name: tensor for name, tensor in tensors.items() if name != NAME}
    with pytest.raises(UserError, match=f"FILE has no tensor {NAME}"):
        model_file(missing).tensors()
    extra = NAME.replace("1", "2")
    with pytest.raises(UserError, match=f"FILE has a tensor {extra}, which is no parameter"):
        model_file(tensors | {extra: tensors[NAME]}).tensors()
    with pytest.raises(UserError, match=rf"{NAME} has shape \(32, 128\), expected \(128, 32\)"):
        model_file(tensors | {NAME: tensors[NAME].T}).tensors()


def test_tensors_of_a_huge_claimed_n_layer_are_refused_at_once(tensors):
    with pytest.raises(UserError, match=r"FILE has no tensor transformer.h.2.ln_1.weight"):
        model_file(tensors, n_layer=10**12).tensors()


def test_from_file_names_the_file_of_an_impossible_shape(tensors):
    with pytest.raises(UserError, match=r"^FILE: n_embd = 32 is not divisible by n_head = 5"):
        GPT.from_file(model_file(tensors, n_head=5))
