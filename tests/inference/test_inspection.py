"""Inspection: surprisal, alternatives, attention and comparison equal plain computations, and those of transformers."""

import math

import pytest
import torch
from corpus import tokenizer_or_skip
from models import assert_close, hugging_face_model, random_ids

from formats import hugging_face
from inference.eval_model import for_inference
from inference.generate import GenerationConfig, generate
from inference.inspection import alternatives, attention_maps, compare_spans, continue_tokens, score_tokens
from inference.sampling import Sampling
from model import GPT, GPTConfig
from system.errors import UserError
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

CONFIG = GPTConfig(block_size=24, vocab_size=97, n_layer=2, n_head=2, n_embd=32)
BYTE = get_tokenizer("byte")
IDS = [5, 90, 17, 17, 3, 41, 8]


@pytest.fixture
def gpt(make_gpt):
    return make_gpt(CONFIG).eval()


@torch.no_grad()
def log_probs(gpt, ids):
    """Of every next token, (T, V), in float64."""
    device = gpt.lm_head.weight.device
    return gpt(torch.tensor([ids], device=device))[0].cpu().double().log_softmax(-1)


def test_score_tokens_is_minus_the_log_probability(gpt):
    tokens = score_tokens(gpt, IDS)
    expected = [-row[i].item() for row, i in zip(log_probs(gpt, IDS[:-1]), IDS[1:], strict=True)]
    assert [token.id for token in tokens] == IDS
    assert tokens[0].nats is None
    assert [token.nats for token in tokens[1:]] == pytest.approx(expected, rel=1e-4)
    assert [token.nats for token in score_tokens(gpt, [7])] == [None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_continue_tokens_are_those_of_generate_with_the_surprisal_of_the_whole_text(gpt, device, dtype):
    config = GenerationConfig(12, Sampling(0.7, 20, 0.9), seed=3)
    with for_inference(gpt, Runtime(device, dtype)) as ready:
        tokens = list(continue_tokens(ready, IDS, config))
        assert [token.id for token in tokens] == generate(ready, [IDS], config)[0]
        whole = score_tokens(ready, IDS + [token.id for token in tokens])[len(IDS) :]
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    assert [token.nats for token in tokens] == pytest.approx([token.nats for token in whole], abs=tolerance)


def test_continue_tokens_ends_with_end_of_text(gpt):
    free = generate(gpt, [IDS], GenerationConfig(12, Sampling(), seed=3))[0]
    config = GenerationConfig(12, Sampling(), seed=3, eot=free[4])
    assert [token.id for token in continue_tokens(gpt, IDS, config)] == free[: free.index(free[4]) + 1]


def test_alternatives_are_the_most_probable_ids(gpt):
    probs = log_probs(gpt, IDS)[-1].exp()
    order = probs.argsort(descending=True)[:10].tolist()
    found = alternatives(gpt, IDS)
    assert [i for i, _ in found] == order
    assert [p for _, p in found] == pytest.approx([probs[i].item() for i in order], rel=1e-4)
    everything = alternatives(gpt, IDS, count=1000)
    assert len(everything) == 97
    assert math.fsum(p for _, p in everything) == pytest.approx(1, abs=1e-5)


@pytest.mark.cpu
def test_attention_maps_equal_those_of_transformers():
    theirs = hugging_face_model()
    theirs.set_attn_implementation("eager")
    shape = {"block_size": 32, "vocab_size": 100, "n_layer": 2, "n_head": 4, "n_embd": 32}
    ours = GPT(GPTConfig(**shape)).eval()
    tensors = hugging_face.to_gpt2(theirs.state_dict())
    with torch.no_grad():
        for name, p in ours.to_tensors().items():
            p.copy_(tensors[name])
        idx = random_ids(1, 20)
        expected = torch.cat(theirs(idx, output_attentions=True).attentions)  # (n_layer, nh, T, T)
    assert_close(attention_maps(ours, idx[0].tolist()), expected, "attention")


def test_attention_maps_are_the_same_in_a_packed_model_and_leave_no_hook(gpt, device):
    plain = attention_maps(gpt, IDS)
    with for_inference(gpt, Runtime(device, torch.bfloat16)) as ready:
        torch.testing.assert_close(attention_maps(ready, IDS), plain, atol=0.1, rtol=0)
    assert not any(module._forward_hooks for module in gpt.modules())
    torch.testing.assert_close(plain.sum(-1), torch.ones(2, 2, len(IDS)))


def byte_gpt(make_gpt, n_layer, block_size=64):
    return make_gpt(GPTConfig(block_size=block_size, vocab_size=257, n_layer=n_layer, n_head=2, n_embd=32)).eval()


def test_compare_spans_of_one_tokenizer_are_its_tokens(make_gpt):
    text = "a é, b"
    pair = [(byte_gpt(make_gpt, n_layer), BYTE) for n_layer in (1, 2)]
    spans = compare_spans(*pair, text)
    assert [span.text for span in spans] == [bytes([b]) for b in text.encode()]
    for (gpt, _), name in zip(pair, ("first", "second"), strict=True):
        expected = [token.nats for token in score_tokens(gpt, [BYTE.eot, *text.encode()])[1:]]
        assert [getattr(span, name) for span in spans] == pytest.approx(expected, abs=1e-9)


def test_compare_spans_of_two_tokenizers_sum_the_tokens_between_common_boundaries(make_gpt):
    words = tokenizer_or_skip("gpt2")
    text = "Über 模型 models"
    a = make_gpt(GPTConfig(block_size=64, vocab_size=50257, n_layer=1, n_head=2, n_embd=32)).eval()
    b = byte_gpt(make_gpt, 2)
    spans = compare_spans((a, words), (b, BYTE), text)
    ids = words.encode(text)
    assert [span.text for span in spans] == [words.decode_bytes([i]) for i in ids]  # bytes have all boundaries
    assert [span.first for span in spans] == pytest.approx(
        [t.nats for t in score_tokens(a, [words.eot, *ids])[1:]], abs=1e-9
    )
    whole = sum(token.nats for token in score_tokens(b, [BYTE.eot, *text.encode()])[1:])
    assert sum(span.second for span in spans) == pytest.approx(whole)
    swapped = compare_spans((b, BYTE), (a, words), text)
    assert [(s.text, s.second, s.first) for s in swapped] == [(s.text, s.first, s.second) for s in spans]


def test_compare_spans_refuses_a_text_that_one_model_cannot_hold(make_gpt):
    pair = [(byte_gpt(make_gpt, 1, block_size), BYTE) for block_size in (64, 8)]
    assert len(compare_spans(*pair, "1234567")) == 7
    with pytest.raises(UserError, match="the text has 8 tokens: expected fewer than block_size, 8"):
        compare_spans(*pair, "12345678")
    assert compare_spans(*pair, "") == []
