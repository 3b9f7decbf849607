"""HellaSwag: the scores are those of the slow, obvious way, for any batching and any number of ranks."""

import dataclasses
import hashlib
import http.server
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from helpers import run_script, torchrun
from torch.nn import functional as F

import hellaswag
from formats import checkpoint
from hellaswag import Example, Scores, encode, evaluate, interval, prepare, read_records, score
from model import GPT, GPTConfig
from system import download as download_module
from system.errors import UserError
from system.runtime import Runtime
from tokens.tokenizer import get_tokenizer

BYTE = get_tokenizer("byte")
CPU = Runtime(torch.device("cpu"), torch.float32)
CONFIG = GPTConfig(block_size=64, vocab_size=257, n_layer=2, n_head=2, n_embd=32)


def make_gpt(config=CONFIG):
    torch.manual_seed(0)
    gpt = GPT(config)
    with torch.no_grad():
        for p in gpt.parameters():
            p.mul_(4)  # sharper than at initialisation, so that a wrong position or mask shows
    return gpt


def line(i, ctx, endings, label):
    return json.dumps({"ind": i, "activity_label": "x", "ctx": ctx, "endings": endings, "label": label})


@pytest.fixture
def data(tmp_path):
    """37 examples of many lengths, some of which are too long for `CONFIG`."""
    words = ["the", "old", "sea", "was", "calm", "and", "a", "boat", "went", "out", "to", "look", "for", "fish"]
    lines = []
    for i in range(37):
        ctx = " ".join(words[: 1 + i % 13])
        endings = [" ".join(words[(i + j) % 7 : (i + j) % 7 + 1 + (i * (j + 1)) % 6]) for j in range(4)]
        lines.append(line(i + 100, ctx, endings, i % 4))
    path = tmp_path / "examples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@torch.no_grad()
def obvious_losses(logits_of, example):
    """One ending at a time: the loss of its tokens after the context, summed."""
    losses = []
    for ending in example.endings:
        ids = torch.tensor(example.ctx + ending)
        logits = logits_of(ids[None, :-1])[0].float()
        each = F.cross_entropy(logits, ids[1:], reduction="none")
        losses.append(each[len(example.ctx) - 1 :].sum().item())
    return losses


def check_against(logits_of, task, scores):
    by_sum, by_mean = scores.predictions()
    for i, example in enumerate(task.examples):
        expected = torch.tensor(obvious_losses(logits_of, example))
        lengths = torch.tensor([len(ending) for ending in example.endings])
        torch.testing.assert_close(scores.losses[i], expected, atol=1e-4, rtol=0)
        assert torch.equal(scores.lengths[i], lengths)
        assert by_sum[i] == expected.argmin()
        assert by_mean[i] == (expected / lengths).argmin()


def test_every_loss_equals_the_obvious_way(data):
    gpt = make_gpt().eval()
    task = prepare(CPU, BYTE, CONFIG.block_size, data=data, batch_tokens=300)
    check_against(gpt, task, score(gpt, task, CPU))


def hugging_face(folder):
    transformers = pytest.importorskip("transformers")
    settings = {"n_positions": 256, "n_embd": 32, "n_layer": 2, "n_head": 2}
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval()
    with torch.no_grad():
        for p in hf.parameters():
            p.mul_(4)
    hf.save_pretrained(folder)
    return hf, GPT.from_pretrained(str(folder))


def test_real_examples_score_as_with_hugging_faces_logits(tmp_path):
    path = Path(os.environ.get("GPT2_TEST_DATA", "")) / "hellaswag" / "hellaswag_val_first1000.jsonl"
    if not path.is_file():
        pytest.skip("GPT2_TEST_DATA names no folder with hellaswag/hellaswag_val_first1000.jsonl")
    try:
        tokenizer = get_tokenizer("gpt2")
    except UserError as error:
        pytest.skip(str(error))
    hf, gpt = hugging_face(tmp_path)
    task = prepare(CPU, tokenizer, 256, data=path, limit=30)
    check_against(lambda ids: hf(ids).logits, task, score(gpt, task, CPU))


def test_made_up_ids_score_as_with_hugging_faces_logits(tmp_path):
    hf, gpt = hugging_face(tmp_path)
    g = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(50257, (n,), generator=g).tolist()

    examples = [Example(i, 0, ids(1 + 7 * i), [ids(1 + (i + j) % 5) for j in range(4)]) for i in range(8)]
    batches = [hellaswag.make_batch(examples, group) for group in hellaswag.batch_by_length(examples, 128)]
    task = hellaswag.Task(examples, batches, "")
    check_against(lambda ids: hf(ids).logits, task, score(gpt, task, CPU))


def test_batch_tokens_change_no_count(data):
    gpt = make_gpt()
    tasks = [prepare(CPU, BYTE, 64, data=data, batch_tokens=tokens) for tokens in (1, 150, 600, 10**6)]
    scores = [score(gpt, task, CPU) for task in tasks]
    assert (len(tasks[0].batches), len(tasks[-1].batches)) == (37, 1)
    for other in scores[1:]:
        torch.testing.assert_close(other.losses, scores[0].losses, atol=1e-4, rtol=0)
        assert other.counts() == scores[0].counts()
    assert scores[0].counts()[2] == 37


def test_bfloat16_scores_are_close(data):
    gpt = make_gpt()
    task = prepare(CPU, BYTE, 64, data=data)
    exact = score(gpt, task, CPU).losses
    rough = score(gpt, task, Runtime(CPU.device, torch.bfloat16)).losses
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.5, rtol=0.02)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model_00007.pt"
    state = {"model": make_gpt().state_dict(), "model_config": dataclasses.asdict(CONFIG)}
    checkpoint.save(path, state | {"tokenizer": "byte", "step": 7, "val_loss": None})
    return path


def test_one_two_and_three_ranks_give_the_same_scores(tmp_path, data, saved):
    flags = ["--model", saved, "--data", data, "--batch_tokens", 400, "--device", "cpu", "--dtype", "float32"]
    outs = [tmp_path / f"{ranks}.jsonl" for ranks in (1, 2, 3)]
    one = run_script("hellaswag.py", *flags, "--out", outs[0], env={"OMP_NUM_THREADS": "1"})
    results = [one] + [torchrun(n, "hellaswag.py", *flags, "--out", outs[n - 1]) for n in (2, 3)]
    for done in results:
        assert done.returncode == 0, done.stderr
        assert done.stdout.replace(str(outs[1]), str(outs[0])).replace(str(outs[2]), str(outs[0])) == one.stdout
    assert outs[0].read_bytes() == outs[1].read_bytes() == outs[2].read_bytes()
    lines = [json.loads(text) for text in outs[0].read_text().splitlines()]
    assert [entry["ind"] for entry in lines] == list(range(100, 137)), "in the file's order"
    assert set(lines[0]) == {"ind", "label", "losses", "lengths", "pred", "pred_norm"}
    correct = sum(entry["pred"] == entry["label"] for entry in lines)
    correct_norm = sum(entry["pred_norm"] == entry["label"] for entry in lines)
    share, share_norm = f"{correct / 37:.4f}", f"{correct_norm / 37:.4f}"
    assert f"acc: {correct}/37={share}  acc_norm: {correct_norm}/37={share_norm}\n" in one.stdout
    again = run_script("hellaswag.py", *flags, "--out", outs[0])
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_a_model_in_training_is_scored_without_dropout_and_left_as_it_was(data):
    gpt = make_gpt(dataclasses.replace(CONFIG, dropout=0.5))
    task = prepare(CPU, BYTE, 64, data=data)
    expected = score(make_gpt(), task, CPU).losses
    gpt.train()
    state = torch.get_rng_state()
    torch.testing.assert_close(score(torch.compile(gpt, backend="eager"), task, CPU).losses, expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in gpt.modules())


def test_training_goes_on_as_if_nothing_had_been_scored(make_trainer, data):
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def train(scored):
        trainer = make_trainer(n_layer=1, dropout=0.1)
        task = prepare(CPU, BYTE, trainer.raw_model.config.block_size, data=data)
        seen, counts, compiled = [], [], []
        trainer.report = lambda loss, lr, norm: seen.append((loss, norm))
        if scored:
            trainer.train_model = torch.compile(trainer.raw_model, backend=counting)
        for trainer.step in range(3):
            if scored:
                counts.append(evaluate(trainer.train_model, task, CPU))
            trainer.update()
            compiled.append(len(graphs))
        return seen, counts, compiled

    plain, _, _ = train(scored=False)
    beside, counts, compiled = train(scored=True)
    assert beside == plain
    assert counts[0][2] == 37
    assert compiled[0] == compiled[-1] > 0, "nothing is compiled after the first step"


def test_an_example_that_is_too_long_is_cut_and_told(data):
    room = [(0, 1, "x" * 100 + "the end", ["a", "bb", "ccc", "dddd"]), (1, 0, "short", ["a" * 100, "b", "c", "d"])]
    examples, note = encode(room, BYTE, 64)
    longest = len(" dddd")
    assert len(examples[0].ctx) + longest - 1 == 64, "the longest ending just fits, less its last token"
    assert BYTE.decode(examples[0].ctx).endswith("xxthe end"), "a context loses its beginning"
    assert examples[0].endings[3] == BYTE.encode(" dddd")
    assert (len(examples[1].ctx), len(examples[1].endings[0])) == (1, 64)
    assert note == "2 of 2 contexts lost their beginning to fit block_size 64, and in 1 examples endings lost their end"
    assert encode([(0, 1, "ctx", ["a", "b", "c", "d"])], BYTE, 64)[1] == ""
    assert [len(e) for e in encode(room, BYTE, 1)[0][0].endings] == [1, 1, 1, 1], "even a block_size of 1"


GOOD = line(0, "a", ["b", "c", "d", "e"], 1)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (GOOD[:-20], "line 2 is no JSON"),
        (line(1, "a", ["b", "c", "d"], 1), "line 2: endings: 3 of them, expected 4"),
        (line(1, "a", ["b", "c", "d", 5], 1), "line 2: endings"),
        (line(1, "a", "bcde", 1), "line 2: endings: 'bcde'"),
        (line(1, "a", ["b", "c", "d", "e"], 7), "line 2: label is 7, expected 0, 1, 2 or 3"),
        (line(1, "a", ["b", "c", "d", "e"], "1"), "line 2: label is '1'"),
        (line(1, "", ["b", "c", "d", "e"], 1), "line 2: ctx is ''"),
        (line(None, "a", ["b", "c", "d", "e"], 1), "line 2: ind is None"),
        ("[1, 2]", "line 2: expected an object"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, bad, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(GOOD + "\n" + bad + "\n")
    with pytest.raises(UserError, match=r"bad\.jsonl") as told:
        prepare(CPU, BYTE, 64, data=path)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_an_empty_or_absent_file_is_told(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, words in (("empty.jsonl", "is empty"), ("absent.jsonl", "No such file"), (".", "directory")):
        with pytest.raises(UserError, match=words):
            read_records(tmp_path / name)
    for options in ({"limit": 0}, {"batch_tokens": 0}):
        with pytest.raises(UserError, match="expected at least 1"):
            prepare(CPU, BYTE, 64, data=tmp_path / "empty.jsonl", **options)


def test_limit_takes_the_first(data):
    task = prepare(CPU, BYTE, 64, data=data, limit=5)
    assert [example.ind for example in task.examples] == [100, 101, 102, 103, 104]


def test_counts_and_their_interval():
    losses = torch.tensor([[4.0, 5, 6, 7], [8, 6, 7, 9], [1, 2, 3, 4]])
    lengths = torch.tensor([[1, 5, 2, 2], [2, 2, 2, 9], [1, 1, 1, 1]])
    scores = Scores(losses, lengths, torch.tensor([0, 3, 0]))
    assert scores.counts() == (2, 2, 3)
    low, high = interval(2967, 10042)
    assert (low, high) == pytest.approx((0.28662, 0.30445), abs=2e-5)
    assert interval(0, 10)[0] == pytest.approx(0)


BODY = bytes(range(256)) * 3000


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves BODY, continues where asked, and breaks the first connection off half-way."""

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.asked.append(start)
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        first = len(self.server.asked) == 1
        self.wfile.write(BODY[start : len(BODY) // 2] if first else BODY[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, hub):
    url, path = f"http://127.0.0.1:{hub.server_port}/f.jsonl", tmp_path / "new" / "f.jsonl"
    right = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(UserError, match=r"broke off.*run it again.*pass --data"):
        download_module.download(url, path, right, "or pass --data FILE")
    assert not path.exists(), "half a file never has the name of the whole"
    download_module.download(url, path, right, "")
    assert path.read_bytes() == BODY
    assert hub.asked == [0, len(BODY) // 2]
    with pytest.raises(UserError, match="checksum"):
        download_module.download(url, tmp_path / "g.jsonl", "0" * 64, "")
    assert not list(tmp_path.glob("g.jsonl*"))
    (tmp_path / "h.jsonl.part").write_bytes(BODY)  # whole already, when the server was asked last
    download_module.download(url, tmp_path / "h.jsonl", right, "")


def test_no_network_is_told_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(hellaswag, "URL", "http://127.0.0.1:9/none.jsonl")
    monkeypatch.setattr(hellaswag, "DEFAULT_PATH", tmp_path / "f.jsonl")
    with pytest.raises(UserError, match=r"could not be downloaded.*--data FILE"):
        prepare(CPU, BYTE, 64)
    (tmp_path / "f.jsonl").write_text(GOOD)
    with pytest.raises(UserError, match="isn't the original"):
        prepare(CPU, BYTE, 64)
