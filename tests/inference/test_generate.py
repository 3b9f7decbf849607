"""Generation: the cache, batching and CUDA graphs change no token; rows end at end-of-text."""

import pytest
import torch

from inference import generate as generation
from inference.cuda_graph import StaticKVCache
from inference.eval_model import for_inference
from inference.generate import GenerationConfig, crop, generate
from inference.sampling import GREEDY, Sampling, next_ids, uniforms
from model import GPTConfig, KVCache
from system.errors import UserError
from system.runtime import Runtime

CONFIG = GPTConfig(block_size=16, vocab_size=97, n_layer=2, n_head=2, n_embd=32)
PROMPTS = [[1, 2, 3], [4], list(range(40)), list(range(16)), list(range(17)), [9] * 15]  # 40 and 17 exceed block_size


@pytest.fixture
def gpt(make_gpt):
    return make_gpt(CONFIG)


def sample(gpt, prompts, n, seed=5, **options):
    return generate(gpt, prompts, GenerationConfig(n, Sampling(), seed, **options))


@torch.no_grad()
def generate_without_cache(gpt, prompt, row, config):
    """Recompute the whole context for every token."""
    u = uniforms(config.seed, row + 1, config.max_new_tokens)[row]
    context, new = list(prompt), []
    for step in range(config.max_new_tokens):
        if len(context) > gpt.config.block_size:
            context = context[-(gpt.config.block_size // 2) :]
        logits = gpt.eval()(torch.tensor([context], device=gpt.lm_head.weight.device))[:, -1].cpu()
        token = next_ids(logits, u[step : step + 1], config.sampling).item()
        context.append(token)
        new.append(token)
    return new


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(0.8, 20, 0.9)])
def test_generate_equals_recomputing_without_a_cache(gpt, sampling):
    config = GenerationConfig(50, sampling, seed=3)
    expected = [generate_without_cache(gpt, prompt, row, config) for row, prompt in enumerate(PROMPTS)]
    assert generate(gpt, PROMPTS, config) == expected


@pytest.mark.cpu
def test_generate_greedy_equals_hugging_face(hugging_face):
    hf, gpt = hugging_face
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    theirs = hf.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), **settings)[0, 3:].tolist()
    assert generate(gpt, [[5, 6, 7]], GenerationConfig(12, GREEDY)) == [theirs]


@pytest.mark.cpu
@pytest.mark.parametrize("padding", [None, [0, 3, 5]])
@torch.no_grad()
def test_kv_cache_filled_in_pieces_equals_one_forward_pass(gpt, padding):
    gpt.eval()
    ids = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = KVCache(CONFIG, 3, 12, "cpu", torch.float32, padding=None if padding is None else torch.tensor(padding))
    pieces = torch.cat([gpt.hidden(piece, cache) for piece in ids.split([6, 1, 2, 3], dim=1)], dim=1)
    for row, skip in enumerate([0, 0, 0] if padding is None else padding):
        torch.testing.assert_close(pieces[row, skip:], gpt.hidden(ids[row : row + 1, skip:])[0], atol=1e-4, rtol=1e-4)


@pytest.mark.cpu
@torch.no_grad()
def test_static_kv_cache_equals_kv_cache(gpt):
    gpt.eval()
    caches = [KVCache(CONFIG, 2, 12, "cpu", torch.float32, padding=torch.tensor([0, 3])) for _ in range(2)]
    prompt = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 5]])
    for cache in caches:
        gpt.hidden(prompt, cache)
    caches[1] = StaticKVCache(caches[1])
    for token in range(6):
        ids = torch.tensor([[token], [token + 7]])
        torch.testing.assert_close(gpt.hidden(ids, caches[1]), gpt.hidden(ids, caches[0]))


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling()])
def test_cuda_graph_changes_no_token(gpt, device, dtype, sampling):
    with for_inference(gpt, Runtime(device, dtype)) as ready:
        expected = generate(ready, PROMPTS, GenerationConfig(50, sampling))
        assert generate(ready, PROMPTS, GenerationConfig(50, sampling, cuda_graph=True)) == expected


def test_crop_keeps_the_last_half_of_a_full_context():
    assert crop(list(range(16)), 16) == list(range(16))
    assert crop(list(range(17)), 16) == list(range(9, 17))
    assert crop([1, 2], 1) == [2]


def test_generate_row_depends_only_on_its_prompt_and_seed(gpt):
    prompts = [[1], [2, 3], [4]]
    together = sample(gpt, prompts, 20)
    assert sample(gpt, prompts, 20) == together
    assert sample(gpt, prompts[:1], 20) == together[:1]
    assert sample(gpt, prompts, 10) == [row[:10] for row in together]
    assert sample(gpt, prompts, 20, seed=6) != together
    same = sample(gpt, [[1], [1]], 20)
    assert same[0] != same[1]


def test_generate_leaves_random_state_mode_and_weights_unchanged(gpt, device):
    gpt.train()
    state, weights = torch.get_rng_state(), [p.clone() for p in gpt.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        with for_inference(gpt, Runtime(device, dtype)) as ready:
            sample(ready, [[1, 2]], 5)
    sample(gpt, [[1, 2]], 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in gpt.modules())
    assert all(torch.equal(p, before) for p, before in zip(gpt.parameters(), weights, strict=True))
    assert all(p.requires_grad and p.grad is None for p in gpt.parameters())


def test_generate_never_returns_padded_vocabulary_ids(gpt):
    with torch.no_grad():
        gpt.transformer.wte.weight[97:] = 100 * gpt.transformer.wte.weight[:1]  # the largest logits of all
        gpt.transformer.wte.weight[98:] *= -1
    for sampling in (GREEDY, Sampling(temperature=5.0)):
        assert max(map(max, generate(gpt, PROMPTS, GenerationConfig(40, sampling)))) < 97


def test_generate_row_ends_at_eot_while_others_continue(gpt):
    calls = []
    free = sample(gpt, [[1], [2]], 30, seed=1)
    eot = free[0][4]
    cut = [row[: row.index(eot)] if eot in row else row for row in free]
    config = GenerationConfig(30, Sampling(), seed=1, eot=eot)
    assert generate(gpt, [[1], [2]], config, on_token=lambda row, token: calls.append((row, token))) == cut
    for row in (0, 1):
        expected = cut[row] + [eot] if len(cut[row]) < 30 else cut[row]
        assert [token for r, token in calls if r == row] == expected


def test_generate_drops_the_rows_that_have_finished(gpt, monkeypatch):
    prompts, decoded = [[1], [2, 3], [4], [5, 6, 7]], []
    free = sample(gpt, prompts, 50)  # exceeds the context: the cache is computed again for the rows that are left
    lengths = (2, 45, 7, 12)

    def decode(model, cache, ids):
        decoded.append(len(ids))
        return original(model, cache, ids)

    original = generation.decode
    monkeypatch.setattr(generation, "decode", decode)
    seen = [0] * 4

    def ends(row, token):
        seen[row] += 1
        return seen[row] == lengths[row]

    config = GenerationConfig(50, Sampling(), seed=5)
    assert generate(gpt, prompts, config, ends) == [row[:n] for row, n in zip(free, lengths, strict=True)]
    assert decoded == [4] * 2 + [3] * 5 + [2] * 5 + [1] * 33


def test_generate_refuses_an_empty_prompt(gpt):
    with pytest.raises(UserError, match="empty prompt"):
        sample(gpt, [[1], []], 5)


def test_generate_accepts_no_prompts_and_no_new_tokens(gpt):
    assert sample(gpt, [], 5) == []
    assert sample(gpt, [[1]], 0) == [[]]
