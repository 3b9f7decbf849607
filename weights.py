"""Any model file ↔ `GPT`: our checkpoints and Hugging Face's GPT-2, by name or folder."""

import os
from dataclasses import dataclass

import torch

import checkpoint
from errors import UserError
from model import GPT, GPTConfig

PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # stored transposed
TOKENIZER_OF_VOCAB = {50257: "gpt2", 257: "byte"}


@dataclass(frozen=True)
class Loaded:
    model: GPT  # on the CPU, float32, in eval mode
    tokenizer: str | None  # None where the file doesn't tell
    source: str  # what was loaded, in words for people


def load_model(name, dropout=0.0):
    """Load `name`: gpt2 … gpt2-xl (downloaded), a folder in Hugging Face's format, or a checkpoint of ours.

    Raises `UserError` where it isn't there, can't be read or isn't a GPT-2.
    """
    if name in PRETRAINED or os.path.isdir(name):
        return load_hugging_face(name, dropout)
    if not os.path.isfile(name):
        raise UserError(f"{name}: no such model; expected a checkpoint, a folder, or one of {', '.join(PRETRAINED)}")
    state = checkpoint.load(name)
    model = GPT(GPTConfig(**state["model_config"] | {"dropout": dropout}))
    model.load_state_dict(state["model"])
    return Loaded(model.eval(), state["tokenizer"], f"{name} (step {state['step']})")


def load_hugging_face(name, dropout):
    from transformers import GPT2Config, GPT2LMHeadModel  # slow to import, so only where it is needed

    try:
        hf_config = GPT2Config.from_pretrained(name)
        if hf_config.model_type != "gpt2" or hf_config.activation_function != "gelu_new":
            raise UserError(f"{name} is a {hf_config.model_type} with {hf_config.activation_function}, not a GPT-2")
        hf_model = GPT2LMHeadModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name} could not be loaded ({str(error).splitlines()[0]}). Without a network: set HF_ENDPOINT to a"
            " mirror, or HF_HOME to a cache copied from a machine that has it, or name a folder"
        ) from error
    config = GPTConfig(
        block_size=hf_config.n_positions,
        vocab_size=hf_config.vocab_size,
        n_layer=hf_config.n_layer,
        n_head=hf_config.n_head,
        n_embd=hf_config.n_embd,
        dropout=dropout,
    )
    model = GPT(config)
    copy_weights(model, hf_model.state_dict())
    return Loaded(model.eval(), TOKENIZER_OF_VOCAB.get(config.vocab_size), name)


@torch.no_grad()
def copy_weights(model, source):
    """Copy Hugging Face's tensors, by name: Conv1D weights transposed, the vocabulary into its padding."""
    for name, p in model.named_parameters():  # lm_head is wte, and stands there once
        tensor = source[name].T if name.endswith(CONV1D) else source[name]
        target = p.zero_()[: model.config.vocab_size] if name == "transformer.wte.weight" else p
        if target.shape != tensor.shape:
            raise UserError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(target.shape)}")
        target.copy_(tensor)
