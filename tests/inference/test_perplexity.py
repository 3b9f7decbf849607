"""Perplexity: every token once, with the context that is promised, equal to the plain loop for any batch and rank."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from inference.perplexity import Windowing, ratio, score, spans
from model import GPTConfig
from system.errors import UserError
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = GPTConfig(block_size=64, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
BYTE = get_tokenizer("byte")
TEXTS = ["Ünder the sea", "a", "one two\nthree " * 9, "x" * 63, "y" * 64, "\n", "zebra " * 17]


@pytest.mark.parametrize(("T", "stride"), [(1, 1), (8, 1), (8, 3), (8, 4), (8, 8)])
def test_spans_score_every_token_once_with_enough_context(T, stride):
    for n in range(30):
        targets = []
        for start, stop, scored in spans(n, T, stride):
            assert 0 < stop - start <= T
            first = stop + 1 - scored
            assert first - start >= min(first, T - stride + 1), "the tokens before the first scored one"
            targets += range(first, stop + 1)
        assert targets == list(range(1, n))


def test_spans_with_stride_T_are_the_rolling_windows_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed (optional)")
    for n, T in itertools.product((1, 7, 8, 9, 20), (1, 4, 8)):
        rolling = utils.get_rolling_token_windows(list(range(1, n + 1)), 0, max_seq_len=T, context_len=1)
        expected = [(context[0], target[-1], len(target)) for context, target in rolling]
        assert list(spans(n + 1, T, T)) == expected


@torch.no_grad()
def losses_one_at_a_time(logits_of, ids, T, stride):
    """The loss of each token but the first, each from a forward pass of its own over the context it must see."""
    losses = []
    for t in range(1, len(ids)):
        stop = min(T + math.ceil(max(0, t - T) / stride) * stride, len(ids) - 1)
        context = torch.tensor(ids[max(0, stop - T) : t])
        losses.append(F.cross_entropy(logits_of(context[None])[0, -1].float(), torch.tensor(ids[t])).item())
    return losses


def ids_of(text, begin_with_eot):
    return [BYTE.eot] * begin_with_eot + BYTE.encode(text)


@pytest.mark.parametrize(("T", "stride", "eot"), [(32, 1, True), (16, 5, False), (16, 16, True)])
def test_score_equals_hugging_face_token_by_token(hugging_face, T, stride, eot):
    hf, gpt = hugging_face
    texts = ["a", "one two\n", "Ünder the sea and " * 2]
    totals = score(gpt, BYTE, texts, Windowing(T, stride, eot, batch_tokens=60), CPU)
    for i, text in enumerate(texts):
        losses = losses_one_at_a_time(lambda idx: hf(idx).logits, ids_of(text, eot), T, stride)
        assert totals.loss[i] == pytest.approx(sum(losses), abs=1e-5 * max(1, len(losses)))
        assert totals.tokens[i] == len(losses)


def test_score_does_not_depend_on_batch_tokens(make_gpt):
    gpt = make_gpt(CONFIG)
    one, *others = (score(gpt, BYTE, TEXTS, Windowing(32, 16, batch_tokens=b), CPU).loss for b in (1, 100, 10**6))
    for other in others:
        np.testing.assert_allclose(other, one, atol=1e-4, rtol=1e-6)


class OneOfSeveral(Runtime):
    """A rank whose all-reduce does nothing, so that the test can add the ranks' results itself."""

    def sum(self, tensor):
        return tensor


@pytest.mark.parametrize("world_size", [2, 3])
def test_score_does_not_depend_on_the_number_of_ranks(make_gpt, world_size):
    gpt, windowing = make_gpt(CONFIG), Windowing(64, 64, batch_tokens=64)  # one or several whole documents a window
    texts = [text[:64] for text in TEXTS]
    ranks = [OneOfSeveral(CPU.device, CPU.dtype, rank, world_size) for rank in range(world_size)]
    losses = sum(score(gpt, BYTE, texts, windowing, rt).loss for rt in ranks)
    assert np.array_equal(losses, score(gpt, BYTE, texts, windowing, CPU).loss)


def test_totals_count_the_bytes_and_words_that_are_scored(make_gpt):
    with_eot = score(make_gpt(CONFIG), BYTE, TEXTS, Windowing(64, 32), CPU)
    assert with_eot.bytes.tolist() == [len(text.encode()) for text in TEXTS] == with_eot.tokens.tolist()
    assert with_eot.words.tolist() == [3, 1, 27, 1, 1, 0, 17]
    without = score(make_gpt(CONFIG), BYTE, TEXTS, Windowing(64, 32, begin_with_eot=False), CPU)
    assert (with_eot.bytes - without.bytes).tolist() == [1] * len(TEXTS)


def test_score_of_a_model_without_knowledge_is_the_logarithm_of_its_vocabulary(make_gpt):
    gpt = make_gpt(CONFIG)
    torch.nn.init.zeros_(gpt.transformer.wte.weight)
    totals = score(gpt, BYTE, TEXTS, Windowing(64, 32), CPU)
    assert ratio(totals.loss, totals.tokens) == pytest.approx((math.log(257), 0), abs=1e-5)


def test_score_needs_a_token_to_predict(make_gpt):
    with pytest.raises(UserError, match="no token to score"):
        score(make_gpt(CONFIG), BYTE, ["a", "b"], Windowing(64, 32, begin_with_eot=False), CPU)


@pytest.mark.parametrize("stride", [0, 65])
def test_windowing_checks_the_stride(stride):
    with pytest.raises(UserError, match=f"stride = {stride}: expected 1 to T = 64"):
        Windowing(64, stride)


def test_ratio_has_the_interval_of_a_bootstrap_over_documents():
    rng = np.random.default_rng(0)
    counts = rng.integers(10, 1000, 300).astype(float)
    losses = counts * rng.normal(3, 0.5, 300)
    samples = rng.integers(300, size=(2000, 300))
    low, high = np.quantile(losses[samples].sum(1) / counts[samples].sum(1), (0.025, 0.975))
    value, margin = ratio(losses, counts)
    assert value == losses.sum() / counts.sum()
    assert margin == pytest.approx((high - low) / 2, rel=0.05)
    assert math.isnan(ratio(losses[:1], counts[:1]).margin)
