"""Weights made elsewhere are the same model here; what isn't one is refused in a line. Hugging Face is the judge."""

import contextlib
import http.server
import json
import os
import pickle
import subprocess
import sys
import threading
import types
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
import transformers

from formats import checkpoint, weights
from model import GPT, GPTConfig
from system.errors import UserError

SHAPES = [  # vocabulary, positions, layers, heads, width; the second and third need padding
    (128, 32, 2, 2, 32),
    (100, 48, 3, 4, 64),
    (257, 16, 1, 3, 48),
]


def hugging_face_model(vocab_size=100, n_positions=32, n_layer=2, n_head=4, n_embd=32, **settings):
    """`transformers`' own GPT-2, random, with no bias or LayerNorm at its special starting value, without dropout."""
    torch.manual_seed(0)
    end = {"bos_token_id": vocab_size - 1, "eos_token_id": vocab_size - 1}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    shape = {"vocab_size": vocab_size, "n_positions": n_positions, "n_layer": n_layer, "n_head": n_head}
    config = transformers.GPT2Config(n_embd=n_embd, **shape, **end, **off, **settings)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def ids(*shape, vocab_size=100, seed=1):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(ours, theirs, what="logits"):
    """Within 1e-5 of the tensor's scale."""
    gap = (ours - theirs).abs().max().item()
    assert gap <= 1e-5 * theirs.abs().max().item(), f"{what}: {gap} of {theirs.abs().max()}"


def assert_same_model(ours, theirs):
    idx = ids(2, 16, vocab_size=theirs.config.vocab_size)
    with torch.no_grad():
        assert_close(ours(idx), theirs(idx).logits)


def refused(path):
    """The one line with which `path` is refused."""
    with pytest.raises(UserError) as caught:
        weights.load_model(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    hugging_face_model().save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_loss_and_every_gradient_equal_hugging_face(tmp_path, shape):
    assert torch.get_float32_matmul_precision() == "highest"
    theirs = hugging_face_model(*shape)
    theirs.save_pretrained(tmp_path)
    ours = weights.load_model(str(tmp_path)).model
    V, T = shape[:2]
    idx, targets = ids(3, T, vocab_size=V), ids(3, T, vocab_size=V, seed=2)
    logits = theirs(idx).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    assert_close(ours(idx), logits)
    our_loss = ours(idx, targets)
    our_loss.backward()
    assert our_loss.item() == pytest.approx(loss.item(), rel=1e-6)
    grads = {}
    for prefix, module in theirs.named_modules():
        for name, p in module.named_parameters(recurse=False):
            transposed = isinstance(module, transformers.pytorch_utils.Conv1D) and name == "weight"
            grads[f"{prefix}.{name}"] = p.grad.T if transposed else p.grad
    assert len(list(ours.named_parameters())) == 4 + 12 * shape[2]
    for name, p in ours.named_parameters():
        grad = p.grad[:V] if name == "transformer.wte.weight" else p.grad
        assert_close(grad, grads[name], name)


def test_what_is_loaded_is_ready_for_use(folder):
    loaded = weights.load_model(str(folder), dropout=0.1)
    assert loaded.model.config.dropout == 0.1
    assert not loaded.model.training
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert loaded.model.transformer.wte.weight[100:].count_nonzero() == 0
    assert GPT.from_pretrained(str(folder), dropout=0.2).config.dropout == 0.2


def test_loading_draws_no_random_numbers(folder):
    before = torch.get_rng_state()
    weights.load_model(str(folder))
    assert torch.equal(before, torch.get_rng_state())


def hub_names(tensors):
    """As on the hub: no `transformer.` in front, and each block's causal mask among the weights."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    return {k.removeprefix("transformer."): v for k, v in tensors.items() if k != "lm_head.weight"} | masks


def test_folders_of_every_age_hold_the_same_model(folder, tmp_path):
    theirs = hugging_face_model()
    config = (folder / "config.json").read_text()
    (tmp_path / "pickled").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "legacy").mkdir()
    legacy = hub_names(theirs.state_dict())
    torch.save(legacy, tmp_path / "legacy" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "hub").mkdir()
    hub = {k: v.contiguous() for k, v in hub_names(theirs.state_dict()).items()}
    weights.safetensors.torch.save_file(hub, tmp_path / "hub" / "model.safetensors")
    theirs.save_pretrained(tmp_path / "parts", max_shard_size="60KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    for name in ("hf", "pickled", "legacy", "hub", "parts"):
        (tmp_path / name / "config.json").write_text(config)
        assert_same_model(weights.load_model(str(tmp_path / name)).model, theirs)


def test_half_precision_folders_are_read_as_float32(folder, tmp_path):
    theirs = hugging_face_model().bfloat16()
    theirs.save_pretrained(tmp_path / "half")
    assert_same_model(weights.load_model(str(tmp_path / "half")).model, theirs.float())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 64),
        ("n_head", 5),
        ("n_layer", None),
    ],
)
def test_folders_that_mean_another_function_are_refused(folder, setting, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {setting: value}))
    assert setting in refused(folder)


def test_folders_whose_tensors_do_not_fit_are_refused(folder):
    tensors = weights.safetensors.torch.load_file(folder / "model.safetensors")
    name = "transformer.h.1.mlp.c_fc.weight"

    def with_tensors(changed):
        weights.safetensors.torch.save_file(changed, folder / "model.safetensors")
        return refused(folder)

    assert f"no tensor {name}" in with_tensors({k: v for k, v in tensors.items() if k != name})
    assert "transformer.h.2.mlp.c_fc.weight" in with_tensors(tensors | {name.replace("1", "2"): tensors[name].clone()})
    assert f"{name} has shape (32, 128), its config says (128, 32)" in with_tensors(
        tensors | {name: tensors[name].T.contiguous()}
    )
    assert "lm_head.weight differs" in with_tensors(tensors | {"lm_head.weight": torch.zeros(100, 32)})


def test_damaged_folders_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors is damaged" in refused(folder)
    (folder / "model.safetensors").unlink()
    assert "holds no model.safetensors" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json can't be read" in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    torch.save([1, 2], folder / "pytorch_model.bin")
    assert "pytorch_model.bin is no model" in refused(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "config.json").write_text("{")
    assert "config.json can't be read" in refused(folder)
    (folder / "config.json").unlink()
    assert "holds no config.json" in refused(folder)


# Checkpoints ----------------------------------------------------------------------------------------------------------


def gpt(**changes):
    torch.manual_seed(0)
    defaults = {"block_size": 32, "vocab_size": 100, "n_layer": 2, "n_head": 4, "n_embd": 32}
    return GPT(GPTConfig(**defaults | changes)).eval()


def save_ours(path, model):
    state = {"model": model.state_dict(), "model_config": asdict(model.config), "tokenizer": "byte", "step": 7}
    checkpoint.save(path, state)


def test_our_own_checkpoint_is_the_same_model(tmp_path):
    model = gpt()
    save_ours(tmp_path / "model_00007.pt", model)
    loaded = weights.load_model(str(tmp_path / "model_00007.pt"))
    assert loaded.tokenizer == "byte"
    assert loaded.source.endswith("(step 7)")
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.model.state_dict()[name])


def test_our_own_checkpoint_is_refused_where_a_byte_is_wrong_or_missing(tmp_path):
    path = tmp_path / "model_00007.pt"
    save_ours(path, gpt())
    whole = path.read_bytes()
    for position in (len(whole) // 2, len(whole) - 10, len(whole) - 66):  # a weight, the checksum, its length
        path.write_bytes(whole[:position] + bytes((whole[position] ^ 1,)) + whole[position + 1 :])
        assert "damaged" in refused(path)
    for length in (len(whole) - 1, len(whole) // 2, 100):
        path.write_bytes(whole[:length])
        assert "damaged" in refused(path)


def as_nanogpt(theirs, bias=True, rows=None):
    """nanoGPT's state dict of a Hugging Face model: Linear weights, the head beside the embedding, padded to `rows`."""
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            tensor = tensor.T.contiguous()  # noqa: PLW2901
        if name in ("transformer.wte.weight", "lm_head.weight") and rows:
            tensor = torch.cat([tensor, torch.randn(rows - len(tensor), tensor.size(1))])  # noqa: PLW2901
        if bias or not name.endswith(".bias"):
            tensors[name] = tensor
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    return tensors


def nanogpt_state(tensors, **model_args):
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 32, "vocab_size": 100, "dropout": 0.0, "bias": True}
    state = {"model": tensors, "optimizer": {"state": {}}, "model_args": shape | model_args, "iter_num": 2000}
    return state | {"best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"}}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_nanogpt_checkpoints_are_the_same_model(tmp_path, prefix):
    theirs = hugging_face_model()
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    masks |= {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    tensors = {prefix + name: t for name, t in (as_nanogpt(theirs) | masks).items()}
    torch.save(nanogpt_state(tensors), tmp_path / "ckpt.pt")
    loaded = weights.load_model(str(tmp_path / "ckpt.pt"))
    assert_same_model(loaded.model, theirs)
    assert loaded.tokenizer is None
    assert "2000" in loaded.source


def test_nanogpt_models_without_biases_are_models_with_zero_biases(tmp_path):
    theirs = hugging_face_model()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith(".bias"):
                p.zero_()
    torch.save(nanogpt_state(as_nanogpt(theirs, bias=False), bias=False), tmp_path / "ckpt.pt")
    assert_same_model(weights.load_model(str(tmp_path / "ckpt.pt")).model, theirs)
    torch.save(nanogpt_state(as_nanogpt(theirs, bias=False), bias=True), tmp_path / "ckpt.pt")
    assert "holds no tensor" in refused(tmp_path / "ckpt.pt")  # biases may only lack where the config says so


def save_with_main_class(path, state, name, **attributes):
    """Pickle `state["config"]` as an instance of `__main__.NAME`, as a script does that defines its classes."""
    made = dataclass(types.new_class(name, (), {}, lambda ns: ns.update(__module__="__main__")))
    config = made()
    config.__dict__.update(attributes)
    main = sys.modules["__main__"]
    setattr(main, name, made)
    try:
        torch.save(state | {"config": config}, path)
    finally:
        delattr(main, name)


def test_build_nanogpt_checkpoints_are_the_same_model_and_their_padding_is_left_behind(tmp_path):
    theirs = hugging_face_model(vocab_size=50257, n_embd=8, n_layer=1, n_head=2)
    state = {"model": as_nanogpt(theirs, rows=50304), "step": 19072, "val_loss": 3.07}
    shape = {"block_size": 32, "vocab_size": 50304, "n_layer": 1, "n_head": 2, "n_embd": 8}
    save_with_main_class(tmp_path / "model_19072.pt", state, "GPTConfig", **shape)
    assert b"GPTConfig" in (tmp_path / "model_19072.pt").read_bytes()
    loaded = weights.load_model(str(tmp_path / "model_19072.pt"))
    assert loaded.model.config.vocab_size == 50257
    assert loaded.tokenizer == "gpt2"
    assert "19072" in loaded.source
    assert_same_model(loaded.model, theirs)


class Runs:
    """What an evil pickle holds: a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    evil, ran = tmp_path / "evil.pt", tmp_path / "ran"
    for state in (nanogpt_state({"x": Runs(ran)}), Runs(ran)):
        torch.save(state, evil)
        assert "posix.mkdir" in refused(evil) or "nt.mkdir" in refused(evil)
    evil.write_bytes(pickle.dumps(Runs(ran), protocol=2))
    refused(evil)
    save_with_main_class(evil, {"model": {}}, "GPTConfigs")
    assert "__main__.GPTConfigs" in refused(evil)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Runs(ran)))  # it would have run
    assert ran.exists()


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file"
    assert "no such model" in refused(path)
    contents = {
        b"": "is not a model",
        b"a line of text\n": "is not a model",
        b"\x89PNG\r\n\x1a\n" + bytes(100): "is not a model",
        b"PK\3\4" + bytes(100): "damaged",
        b"\x80\2" + bytes(100): "damaged",
    }
    for content, words in contents.items():
        path.write_bytes(content)
        assert words in refused(path)
    for state in ([1, 2], {"weights": torch.zeros(2)}, {"model": torch.zeros(2)}, nanogpt_state({"wte.weight": 1})):
        torch.save(state, path)
        assert "is not a checkpoint of ours, of nanoGPT or of build-nanogpt" in refused(path)
    for config in ({}, {"config": {"n_layer": 2}}):
        torch.save({"model": as_nanogpt(hugging_face_model())} | config, path)
        assert "holds weights but no config" in refused(path)
    torch.save(nanogpt_state(as_nanogpt(hugging_face_model()), n_layer="2"), path)
    assert "n_layer = '2', expected an integer" in refused(path)
    hugging_face_model().save_pretrained(tmp_path / "hf")
    assert "name the folder" in refused(tmp_path / "hf" / "model.safetensors")


# The hub --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(folder, repo):
    """A local server that answers for one repository as the hub does; yields (address, the paths asked for)."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            prefix = f"/{repo}/resolve/main/"
            file = folder / self.path.removeprefix(prefix)
            if not self.path.startswith(prefix) or not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if self.path.startswith(prefix) else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return None
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            return content

        def do_GET(self):
            content = self.do_HEAD()
            if content is not None:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def load_in_a_process_of_its_own(name, **environment):
    """The hub's settings are read when its library is imported, so a process each."""
    code = f"""if True:
        import sys, torch
        from system import errors
        from formats import weights
        @errors.command
        def main():
            loaded = weights.load_model({name!r})
            print(loaded.source, loaded.tokenizer, loaded.model.transformer.wpe.weight.sum().item())
            print("transformers" in sys.modules)
        main()"""
    removed = {"HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "TRANSFORMERS_OFFLINE"}
    kept = {k: v for k, v in os.environ.items() if k not in removed}
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, cwd=root, env=kept | environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_pretrained_names_come_from_the_hub_once(tmp_path):
    theirs = hugging_face_model(vocab_size=50257, n_embd=8, n_layer=1, n_head=2)
    theirs.save_pretrained(tmp_path / "gpt2")
    home = {"HF_HOME": str(tmp_path / "home")}
    expected = f"gpt2 gpt2 {theirs.transformer.wpe.weight.sum().item()}\nFalse\n"
    with hub(tmp_path / "gpt2", "openai-community/gpt2") as (address, asked):
        first = load_in_a_process_of_its_own("gpt2", HF_ENDPOINT=address, **home)
        assert first.stdout == expected, first.stderr
        asked.clear()
        second = load_in_a_process_of_its_own("gpt2", HF_ENDPOINT=address, **home)
        assert second.stdout == expected
        assert second.stderr == ""
        assert not [path for path in asked if "/resolve/" in path]  # what is there isn't looked up


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    with hub(tmp_path, "nobody/nothing") as (address, _):
        pass  # an address at which nobody listens any more
    failed = load_in_a_process_of_its_own("gpt2-xl", HF_ENDPOINT=address, HF_HOME=str(tmp_path / "home"))
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: gpt2-xl could not be loaded")
    assert "HF_HOME" in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_a_runs_folder_means_its_newest_checkpoint(tmp_path):
    config = GPTConfig(block_size=8, vocab_size=50, n_layer=1, n_head=1, n_embd=8)
    for step in (250, 1000):
        state = {"model": GPT(config).state_dict(), "model_config": asdict(config), "tokenizer": "byte"}
        checkpoint.save(checkpoint.path_of(tmp_path, step), state | {"step": step})
    assert "model_01000.pt" in weights.load_model(str(tmp_path)).source
