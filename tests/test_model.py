"""The model against closed forms and simple versions: size, initialisation, loss, padding, cache, errors."""

import math

import pytest
import torch
from models import random_ids, small_gpt
from torch.nn import functional as F

from formats.hugging_face import PRETRAINED
from model import GPT, IGNORE, GPTConfig, KVCache
from system.errors import UserError

pytestmark = pytest.mark.usefixtures("on_device")

SIZES = {  # parameters as Hugging Face counts them
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
}


def on_meta(name):
    """A model of one of OpenAI's shapes, without memory for its parameters."""
    with torch.device("meta"):
        return GPT(GPTConfig(**PRETRAINED[name]))


@pytest.mark.parametrize("name", SIZES)
def test_parameter_counts_are_those_of_gpt2(name):
    assert sum(tensor.numel() for tensor in on_meta(name).to_tensors().values()) == SIZES[name]


def test_optimizer_groups_decay_only_matrices_and_embeddings():
    decay, no_decay = on_meta("gpt2").optimizer_groups(0.1)
    assert (len(decay["params"]), sum(p.numel() for p in decay["params"])) == (50, 124_354_560)
    assert (len(no_decay["params"]), sum(p.numel() for p in no_decay["params"])) == (98, 121_344)
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.1, 0.0)


@pytest.mark.parametrize(("vocab_size", "n_embd", "rows"), [(512, 64, 32), (2048, 768, 32), (50257, 768, 4)])
def test_initial_loss_follows_from_the_variance_of_the_logits(vocab_size, n_embd, rows):
    """Initial logits are N(0, n_embd·0.02²), so the loss is ln(V) + half their variance, not ln(V)."""
    torch.manual_seed(1)
    model = GPT(GPTConfig(block_size=128, vocab_size=vocab_size, n_layer=1, n_head=4, n_embd=n_embd))
    idx, targets = (random_ids(rows, 128, vocab_size=vocab_size, seed=seed) for seed in (1, 2))
    with torch.no_grad():
        loss = model(idx, targets).item()
    assert loss == pytest.approx(math.log(vocab_size) + n_embd * 0.02**2 / 2, abs=0.05)


def test_head_and_embedding_share_one_tensor():
    model = small_gpt()
    assert model.lm_head.weight is model.transformer.wte.weight
    model.load_state_dict(model.state_dict())
    assert model.lm_head.weight is model.transformer.wte.weight


def stream_std(model, idx):
    """The standard deviation of the residual stream after each block."""
    found = []
    hooks = [block.register_forward_hook(lambda m, a, x: found.append(x.std().item())) for block in model.transformer.h]
    with torch.no_grad():
        model(idx)
    for hook in hooks:
        hook.remove()
    return found


def test_init_weights_keeps_the_residual_stream_independent_of_depth():
    """With scaled projections the sum of all blocks' outputs does not grow with their number; without, it does."""

    def growth(n_layer, scaled):
        model = GPT(GPTConfig(block_size=32, vocab_size=128, n_layer=n_layer, n_head=2, n_embd=128))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("c_proj.weight") and not scaled:
                    p.mul_(math.sqrt(2 * n_layer))
        return stream_std(model, random_ids(4, 32, vocab_size=128))[-1]

    torch.manual_seed(2)
    shallow, deep = growth(2, scaled=True), growth(32, scaled=True)
    assert deep == pytest.approx(shallow, rel=0.1)
    assert growth(32, scaled=False) > 2 * growth(2, scaled=False)


def test_padding_does_not_change_logits_loss_or_gradients():
    """Compare with a head of exactly vocab_size rows."""
    model = small_gpt()
    V, targets = model.config.vocab_size, random_ids(3, 32, seed=2)
    assert model.config.padded_vocab_size > V
    logits = model(random_ids(3, 32))
    assert logits.shape == (3, 32, V)
    unpadded = F.linear(model.hidden(random_ids(3, 32)), model.transformer.wte.weight[:V])
    torch.testing.assert_close(logits, unpadded, rtol=1e-6, atol=1e-6)
    loss = model(random_ids(3, 32), targets)
    torch.testing.assert_close(loss, F.cross_entropy(unpadded.flatten(0, 1), targets.flatten()), rtol=1e-6, atol=1e-6)
    loss.backward()
    assert model.transformer.wte.weight.grad[V:].count_nonzero() == 0
    assert model.transformer.wte.weight[V:].count_nonzero() == 0


def test_padding_rows_may_hold_any_values():
    model = small_gpt()
    logits, loss = model(random_ids(2, 8)), model(random_ids(2, 8), random_ids(2, 8, seed=2))
    with torch.no_grad():
        model.transformer.wte.weight[model.config.vocab_size :] = 100.0
    torch.testing.assert_close(model(random_ids(2, 8)), logits, rtol=0, atol=0)
    torch.testing.assert_close(model(random_ids(2, 8), random_ids(2, 8, seed=2)), loss, rtol=1e-6, atol=0)


def test_loss_is_the_mean_over_targets_that_are_not_ignored():
    model, idx, targets = small_gpt(), random_ids(3, 16), random_ids(3, 16, seed=2)
    targets[0, 5:] = IGNORE
    targets[2] = IGNORE
    log_probs = model(idx).log_softmax(-1)
    kept = [-log_probs[b, t, targets[b, t]] for b in range(3) for t in range(16) if targets[b, t] != IGNORE]
    assert len(kept) == 21
    torch.testing.assert_close(model(idx, targets), torch.stack(kept).mean(), rtol=1e-5, atol=1e-6)


def test_loss_without_reduction_has_a_value_per_position_and_0_where_ignored():
    model, idx, targets = small_gpt(), random_ids(3, 16), random_ids(3, 16, seed=2)
    targets[1, ::2] = IGNORE
    each = model(idx, targets, reduction="none")
    expected = -model(idx).log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(each, expected.masked_fill(targets == IGNORE, 0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(each.sum() / (targets != IGNORE).sum(), model(idx, targets), rtol=1e-5, atol=1e-6)


def test_attention_is_causal():
    model, idx = small_gpt(), random_ids(1, 32)
    changed = idx.clone()
    changed[0, 20:] = (idx[0, 20:] + 1) % 100
    torch.testing.assert_close(model(idx)[:, :20], model(changed)[:, :20], rtol=0, atol=1e-6)
    assert not torch.allclose(model(idx)[:, 20:], model(changed)[:, 20:], atol=1e-3)


@torch.no_grad()
def test_cache_equals_the_full_forward_for_rows_of_different_lengths():
    """Prompts of 3, 7 and 1 ids, then 5 more one at a time: the logits are those of a forward pass without cache."""
    model = small_gpt().eval()
    rows = [random_ids(length + 5, seed=length) for length in (3, 7, 1)]
    lengths = torch.tensor([len(row) - 5 for row in rows])
    padding = 7 - lengths  # on the left
    prompts = torch.stack(
        [torch.cat([random_ids(pad), row[:-5]]) for pad, row in zip(padding.tolist(), rows, strict=True)]
    )
    cache = KVCache(model.config, 3, 12, torch.get_default_device(), torch.float32, padding=padding)
    found = [model.logits(model.hidden(prompts, cache))[:, -1]]  # (3, V) each
    for step in range(5):
        new = torch.stack([row[length + step] for row, length in zip(rows, lengths, strict=True)])[:, None]  # (3, 1)
        found.append(model.logits(model.hidden(new, cache))[:, 0])
    for b, row in enumerate(rows):
        expected = model(row[None])[0, lengths[b] - 1 :]  # (6, V)
        torch.testing.assert_close(torch.stack([logits[b] for logits in found]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_gives_the_same_loss_and_gradients(dropout):
    model = small_gpt(dropout=dropout).train()
    results = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(3)  # the same dropout masks
        loss = model(random_ids(2, 32), random_ids(2, 32, seed=2))
        loss.backward()
        results.append((loss.item(), [p.grad.clone() for p in model.parameters()]))
    (loss, grads), (checkpointed_loss, checkpointed_grads) = results
    assert loss == checkpointed_loss
    for a, b in zip(grads, checkpointed_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"n_embd": 30}, "n_embd = 30 is not divisible by n_head = 4"),
        ({"n_layer": 0}, "n_layer = 0: expected at least 1"),
        ({"dropout": 1.0}, "dropout = 1.0: expected 0 ≤ dropout < 1"),
    ],
)
def test_config_refuses_impossible_values(settings, words):
    with pytest.raises(UserError, match=words):
        small_gpt(**settings)


def test_forward_refuses_more_tokens_than_block_size():
    with pytest.raises(UserError, match="33 tokens: expected at most the model's block_size, 32"):
        small_gpt()(random_ids(1, 33))
