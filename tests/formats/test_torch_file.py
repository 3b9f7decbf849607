"""Checkpoints of nanoGPT and build-nanogpt, and pickles that would run code."""

import os
import pickle
import sys
import types
from dataclasses import dataclass

import pytest
import torch
from models import SHAPE, assert_same_logits, causal_masks, hugging_face_model, refusal

from formats.read import read
from model import GPT


def nanogpt_tensors(theirs, bias=True, rows=None):
    """nanoGPT's state dict of a Hugging Face model: Linear weights and a head, the embedding padded to `rows`."""
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
    model_args = SHAPE | {"dropout": 0.0, "bias": True} | model_args
    state = {"model": tensors, "optimizer": {"state": {}}, "model_args": model_args, "iter_num": 2000}
    return state | {"best_val_loss": torch.tensor(1.5), "config": {"dataset": "shakespeare_char"}}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
def test_nanogpt_checkpoint_computes_the_same_logits(tmp_path, prefix):
    theirs = hugging_face_model()
    tensors = {prefix + name: t for name, t in (nanogpt_tensors(theirs) | causal_masks()).items()}
    torch.save(nanogpt_state(tensors), tmp_path / "ckpt.pt")
    model_file = read(str(tmp_path / "ckpt.pt"))
    assert_same_logits(GPT.from_file(model_file), theirs)
    assert model_file.tokenizer is None
    assert model_file.source.endswith("ckpt.pt (nanoGPT, step 2000)")


def test_nanogpt_checkpoint_without_biases_gets_zero_biases(tmp_path):
    theirs = hugging_face_model()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if name.endswith(".bias"):
                p.zero_()
    torch.save(nanogpt_state(nanogpt_tensors(theirs, bias=False), bias=False), tmp_path / "ckpt.pt")
    assert_same_logits(GPT.from_pretrained(str(tmp_path / "ckpt.pt")), theirs)
    torch.save(nanogpt_state(nanogpt_tensors(theirs, bias=False), bias=True), tmp_path / "ckpt.pt")
    assert "has no tensor transformer.h.0.ln_1.bias" in refusal(tmp_path / "ckpt.pt"), "only if its config says so"


def save_with_main_class(path, state, name, **attributes):
    """Save `state` with a "config" of class `__main__.NAME`, as a script does that defines its own classes."""
    cls = dataclass(types.new_class(name, (), {}, lambda namespace: namespace.update(__module__="__main__")))
    config = cls()
    config.__dict__.update(attributes)
    main = sys.modules["__main__"]
    setattr(main, name, cls)
    try:
        torch.save(state | {"config": config}, path)
    finally:
        delattr(main, name)


def test_build_nanogpt_checkpoint_loses_its_padding(tmp_path):
    theirs = hugging_face_model(vocab_size=50257, n_embd=8, n_layer=1, n_head=2)
    state = {"model": nanogpt_tensors(theirs, rows=50304), "step": 19072, "val_loss": 3.07}
    shape = {"block_size": 32, "vocab_size": 50304, "n_layer": 1, "n_head": 2, "n_embd": 8}
    save_with_main_class(tmp_path / "model_19072.pt", state, "GPTConfig", **shape)
    assert b"GPTConfig" in (tmp_path / "model_19072.pt").read_bytes()
    model_file = read(str(tmp_path / "model_19072.pt"))
    assert model_file.shape == shape | {"vocab_size": 50257}
    assert model_file.tokenizer == "gpt2"
    assert model_file.source.endswith("(nanoGPT, step 19072)")
    assert_same_logits(GPT.from_file(model_file), theirs)


class CreatesFolder:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_safe_load_refuses_pickles_that_run_code(tmp_path):
    unsafe, created = tmp_path / "unsafe.pt", tmp_path / "created"
    for state in (nanogpt_state({"x": CreatesFolder(created)}), CreatesFolder(created)):
        torch.save(state, unsafe)
        assert f"refused: its pickle uses {os.mkdir.__module__}.mkdir, expected dense tensors" in refusal(unsafe)
    unsafe.write_bytes(pickle.dumps(CreatesFolder(created), protocol=2))
    refusal(unsafe)
    save_with_main_class(unsafe, {"model": {}}, "GPTConfigs")
    assert "__main__.GPTConfigs" in refusal(unsafe)
    assert not created.exists()
    pickle.loads(pickle.dumps(CreatesFolder(created)))
    assert created.exists(), "an unguarded load does create the folder"


def test_torch_files_that_are_no_model_are_refused(tmp_path):
    path = tmp_path / "file.pt"
    for state in ([1, 2], {"weights": torch.zeros(2)}, {"model": torch.zeros(2)}, nanogpt_state({"wte.weight": 1})):
        torch.save(state, path)
        assert "is not a checkpoint of this repository, of nanoGPT or of build-nanogpt" in refusal(path)
    tensors = nanogpt_tensors(hugging_face_model())
    for config in ({}, {"config": {"n_layer": 2}}):
        torch.save({"model": tensors} | config, path)
        assert "has weights but no config" in refusal(path)
    torch.save(nanogpt_state(tensors, n_layer="2"), path)
    assert "n_layer = '2' in its config, expected a positive integer" in refusal(path)
