"""Generation: the cache changes nothing, and what is drawn follows the probabilities."""

import math

import pytest
import torch

from inference.cuda_graph import StaticKVCache
from inference.eval_model import packed, reading
from inference.generate import generate, next_ids, uniforms, window
from model import GPT, GPTConfig, KVCache
from system.errors import UserError
from system.runtime import Runtime

CONFIG = GPTConfig(block_size=16, vocab_size=97, n_layer=2, n_head=2, n_embd=32)
PROMPTS = [[1, 2, 3], [4], list(range(40)), list(range(16)), list(range(17)), [9] * 15]  # 40 and 17 exceed the context


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    gpt = GPT(CONFIG)
    with torch.no_grad():
        for p in gpt.parameters():
            p.mul_(5)  # sharper than at initialisation, so that a wrong key or position changes what is chosen
    return gpt


@torch.no_grad()
def without_cache(gpt, prompt, n, seed, row, **sampling):
    """The rule, obviously: everything computed anew for each token."""
    u = uniforms(seed, row + 1, n)[row]
    context, new = list(prompt), []
    for step in range(n):
        if len(context) > gpt.config.block_size:
            context = context[-(gpt.config.block_size // 2) :]
        logits = gpt.eval()(torch.tensor([context]))[:, -1]
        token = next_ids(logits, u[step : step + 1], **sampling).item()
        context.append(token)
        new.append(token)
    return new


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}])
def test_the_cache_changes_no_token(gpt, sampling):
    together = generate(gpt, PROMPTS, 50, seed=3, **sampling)
    assert together == [without_cache(gpt, p, 50, 3, row, **sampling) for row, p in enumerate(PROMPTS)]


def test_greedy_tokens_are_those_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=97, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.mul_(5)
    hf.save_pretrained(tmp_path)
    gpt = GPT.from_pretrained(str(tmp_path))
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    theirs = hf.generate(torch.tensor([[5, 6, 7]]), attention_mask=torch.ones(1, 3), **settings)[0, 3:].tolist()
    assert generate(gpt, [[5, 6, 7]], 12, temperature=0) == [theirs]


@pytest.mark.parametrize("padding", [None, [0, 3, 5]])
@torch.no_grad()
def test_a_cache_filled_in_pieces_holds_the_same(gpt, padding):
    gpt.eval()
    ids = torch.randint(97, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = KVCache(CONFIG, 3, 12, "cpu", torch.float32, padding=None if padding is None else torch.tensor(padding))
    pieces = torch.cat([gpt.hidden(piece, cache) for piece in ids.split([6, 1, 2, 3], dim=1)], dim=1)
    for row, skip in enumerate(padding or [0, 0, 0]):
        torch.testing.assert_close(pieces[row, skip:], gpt.hidden(ids[row : row + 1, skip:])[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_step_of_static_shapes_computes_the_same(gpt):
    gpt.eval()
    caches = [KVCache(CONFIG, 2, 12, "cpu", torch.float32, padding=torch.tensor([0, 3])) for _ in range(2)]
    prompt = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 5]])
    for cache in caches:
        gpt.hidden(prompt, cache)
    caches[1] = StaticKVCache(caches[1])
    for token in range(6):
        ids = torch.tensor([[token], [token + 7]])
        torch.testing.assert_close(gpt.hidden(ids, caches[1]), gpt.hidden(ids, caches[0]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_cuda_graph_changes_no_token(gpt):
    gpt.cuda()
    expected = generate(gpt, PROMPTS, 50, temperature=0)
    assert generate(gpt, PROMPTS, 50, temperature=0, cuda_graph=True) == expected


def test_a_full_context_keeps_its_last_half():
    assert window(list(range(16)), 16) == list(range(16))
    assert window(list(range(17)), 16) == list(range(9, 17))
    assert window([1, 2], 1) == [2]


def chi_squared(counts, probs):
    """Chi-squared over the ids expected at least five times, and the value exceeded by chance once in 10,000."""
    n = counts.sum()
    kept = probs * n >= 5
    statistic = ((counts[kept] - n * probs[kept]) ** 2 / (n * probs[kept])).sum().item()
    degrees = kept.sum().item() - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson & Hilferty 1931
    return statistic, limit


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("top_k", [0, 10, 97])
def test_frequencies_match_the_softmax(temperature, top_k):
    logits = torch.randn(97, generator=torch.Generator().manual_seed(1)) * 2
    n = 100_000
    drawn = next_ids(logits.expand(n, -1), uniforms(5, 1, n)[0], temperature, top_k)
    expected = logits.clone()
    if top_k:
        expected[expected < logits.topk(top_k).values[-1]] = -torch.inf
    probs = torch.softmax(expected / temperature, 0)
    counts = torch.bincount(drawn, minlength=97).float()
    assert counts[probs == 0].sum() == 0
    statistic, limit = chi_squared(counts, probs)
    assert statistic < limit


def test_consecutive_draws_of_a_row_are_independent_of_each_other():
    pairs = (uniforms(7, 1, 100_000)[0] * 10).long().view(-1, 2)
    counts = torch.bincount(pairs[:, 0] * 10 + pairs[:, 1], minlength=100).float()
    statistic, limit = chi_squared(counts, torch.full((100,), 0.01))
    assert statistic < limit


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    u = torch.linspace(0, 1, 1001)[:-1]
    for top_p, kept in ((0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.91, {0, 1, 2, 3})):
        drawn = next_ids(logits.expand(1000, -1), u, top_p=top_p)
        assert set(drawn.tolist()) == kept, top_p
        share = (drawn == 1).float().mean().item()
        assert share == pytest.approx(0.4 / sum(logits[i].exp().item() for i in kept), abs=2e-3)


def test_corners_of_the_settings():
    logits = torch.randn(1000, 97, generator=torch.Generator().manual_seed(2))
    u = uniforms(0, 1, 1000)[0]
    greedy = logits.argmax(-1)
    for settings in ({"temperature": 0}, {"top_k": 1}, {"top_p": 0}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert torch.equal(next_ids(logits, u, **settings), greedy), settings
    plain = next_ids(logits, u)
    assert torch.equal(next_ids(logits, u, top_p=1.0), plain)
    assert not torch.equal(plain, greedy)
    assert next_ids(logits, u, top_k=10**6).max() < 97


def test_the_first_and_the_last_possible_draw_are_ids_with_probability():
    first = next_ids(torch.tensor([[-torch.inf, 0.0, 0.0]]), torch.zeros(1))
    assert first.item() == 1
    logits = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]).repeat(2, 1)
    logits[1, 3] = 0
    last = torch.full((2,), 1 - 2**-24)  # the largest that torch.rand gives
    assert next_ids(logits, last).tolist() == [2, 3]
    assert next_ids(logits[:1], last[:1], top_k=2).item() == 0
    many = torch.randn(20_000, 50, generator=torch.Generator().manual_seed(0)) * 3  # totals near 1, rounded up and down
    many[:, 40:] = -torch.inf
    assert next_ids(many, last[:1].expand(20_000)).max() < 40


def test_the_same_seed_gives_the_same_text_whatever_runs_beside_it(gpt):
    prompts = [[1], [2, 3], [4]]
    together = generate(gpt, prompts, 20, seed=5)
    assert generate(gpt, prompts, 20, seed=5) == together
    assert generate(gpt, prompts[:1], 20, seed=5) == together[:1]
    assert generate(gpt, prompts, 10, seed=5) == [row[:10] for row in together]
    assert generate(gpt, prompts, 20, seed=6) != together
    same = generate(gpt, [[1], [1]], 20, seed=5)
    assert same[0] != same[1]


def test_random_state_mode_and_weights_stay_as_they_are(gpt):
    gpt.train()
    state, weights = torch.get_rng_state(), [p.clone() for p in gpt.parameters()]
    for dtype in (torch.float32, torch.bfloat16):
        with reading(gpt, Runtime(torch.device("cpu"), dtype)) as ready:
            generate(ready, [[1, 2]], 5)
    generate(gpt, [[1, 2]], 5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in gpt.modules())
    assert all(torch.equal(p, before) for p, before in zip(gpt.parameters(), weights, strict=True))
    assert all(p.requires_grad and p.grad is None for p in gpt.parameters())


def test_padded_ids_never_appear(gpt):
    with torch.no_grad():
        gpt.transformer.wte.weight[97:] = 100 * gpt.transformer.wte.weight[:1]  # they would win, if they took part
        gpt.transformer.wte.weight[98:] *= -1
    for settings in ({"temperature": 0}, {"temperature": 5.0}):
        assert max(map(max, generate(gpt, PROMPTS, 40, **settings))) < 97


def test_a_row_ends_at_end_of_text_and_the_others_go_on(gpt):
    heard = []
    free = generate(gpt, [[1], [2]], 30, seed=1)
    eot = free[0][4]
    cut = [row[: row.index(eot)] if eot in row else row for row in free]
    ended = generate(gpt, [[1], [2]], 30, seed=1, eot=eot, on_token=lambda row, token: heard.append((row, token)))
    assert ended == cut
    for row in (0, 1):
        shown = cut[row] + [eot] * (len(cut[row]) < 30)
        assert [token for r, token in heard if r == row] == shown


@pytest.mark.parametrize(
    ("prompts", "settings", "words"),
    [
        ([[1], []], {}, "empty prompt"),
        ([[1]], {"temperature": -1}, "temperature = -1"),
        ([[1]], {"top_k": -1}, "top_k = -1"),
        ([[1]], {"top_p": 1.5}, "top_p = 1.5"),
    ],
)
def test_impossible_settings_are_told(gpt, prompts, settings, words):
    with pytest.raises(UserError, match=words):
        generate(gpt, prompts, 5, **settings)


def test_nothing_asked_nothing_given(gpt):
    assert generate(gpt, [], 5) == []
    assert generate(gpt, [[1]], 0) == [[]]


@pytest.mark.parametrize("operators", ["oneDNN's", "none"])
@torch.no_grad()
def test_packed_weights_compute_what_autocast_does(gpt, operators, monkeypatch):
    if operators == "none":
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    idx = torch.randint(97, (3, 16), generator=torch.Generator().manual_seed(0))
    gpt.eval()
    exact = gpt(idx)
    with torch.autocast("cpu", torch.bfloat16):
        autocast_error = (gpt(idx).float() - exact).abs().mean()
    ready = packed(gpt)
    assert (ready(idx).float() - exact).abs().mean() < 1.3 * autocast_error
    assert ready.transformer.wte.weight is gpt.transformer.wte.weight, "embeddings are shared, not copied"
