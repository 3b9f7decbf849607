"""Reports name the first stage or gradient in which two models differ."""

import pytest
import torch
from models import random_ids, small_gpt

from inference import compare
from model import CausalSelfAttention
from system.errors import UserError

TOLERANCE = 1e-5


def report(ours, theirs):
    """(the lines of the report, whether the models differ) on ids of the first 16 positions."""
    return compare.report_models(ours.eval(), theirs.eval(), random_ids(2, 16), TOLERANCE)


@pytest.mark.parametrize(
    ("name", "index", "stage"),
    [
        ("transformer.wpe.weight", (15, 1), "embeddings"),
        ("transformer.h.0.ln_1.bias", (3,), "block 0 attention"),
        ("transformer.h.1.attn.c_proj.weight", (2, 5), "block 1 attention"),
        ("transformer.h.1.mlp.c_fc.weight", (7, 3), "block 1 MLP"),
        ("transformer.ln_f.weight", (0,), "final norm"),
    ],
)
def test_report_models_finds_a_single_wrong_weight(name, index, stage):
    wrong = small_gpt()
    wrong.to_tensors()[name][index] += 0.05
    lines, differ = report(small_gpt(), wrong)
    assert differ
    assert lines[0] == "tensors: 1 of 28 differ"
    assert lines[-1] == f"the models first differ at {stage}: its {name} differs at {list(index)}"


def test_report_models_finds_a_wrong_weight_that_no_id_uses():
    wrong = small_gpt()
    wrong.to_tensors()["transformer.wpe.weight"][20, 0] += 1e-3
    lines, differ = report(small_gpt(), wrong)
    assert differ
    assert lines[-1] == "the models differ at transformer.wpe.weight[20, 0], but no stage does on these ids"


def test_report_models_counts_nan_as_a_difference():
    wrong = small_gpt()
    wrong.to_tensors()["transformer.h.1.ln_2.bias"][3] = float("nan")
    lines, differ = report(small_gpt(), wrong)
    assert differ
    assert lines[-1] == "the models first differ at block 1 MLP: its transformer.h.1.ln_2.bias differs at [3]"


class Unscaled(CausalSelfAttention):
    """Attention without 1/√d, a mistake that a port could make."""

    def forward(self, x, cache=None, layer=None):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def test_reports_find_a_missing_scale_in_one_block():
    """The stages name the block; a debug state alone shows wrong logits."""
    port = small_gpt().eval()
    port.transformer.h[1].attn.__class__ = Unscaled
    lines, differ = report(small_gpt(), port)
    assert differ
    assert lines[0] == "tensors: 0 of 28 differ"
    assert lines[-1] == "the models first differ at block 1 attention: its tensors agree, its computation differs"
    state = compare.debug_state(port, random_ids(2, 16), random_ids(2, 16, seed=2))
    lines, differ = compare.report_debug_state(small_gpt().eval(), state, TOLERANCE)
    assert differ
    assert lines[-1].startswith("the models first differ at logits, at [")


def test_report_debug_state_finds_the_first_wrong_gradient_of_the_backward_pass():
    model = small_gpt().eval()
    state = compare.debug_state(model, random_ids(2, 16), random_ids(2, 16, seed=2))
    assert all(p.grad is None for p in model.parameters())
    lines, differ = compare.report_debug_state(model, state, TOLERANCE)
    assert not differ
    assert lines[-1].startswith("the models agree")
    for layer in (0, 1):  # the backward pass computes block 1 first
        state.grads[f"transformer.h.{layer}.mlp.c_fc.bias"][3] += 0.1
    lines, differ = compare.report_debug_state(model, state, TOLERANCE)
    assert differ
    assert lines[-1] == "the models first differ at the gradient of transformer.h.1.mlp.c_fc.bias, at [3]"


def test_report_models_refuses_models_of_different_shapes():
    with pytest.raises(UserError, match="the models have different shapes"):
        report(small_gpt(), small_gpt(n_layer=4))
    with pytest.raises(UserError, match=r"transformer.wpe.weight has shape \(32, 32\) in one model and \(16, 32\)"):
        report(small_gpt(), small_gpt(block_size=16))
