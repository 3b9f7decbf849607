"""Tokens per second of generation, compared with Hugging Face's `generate` and with recomputing the whole context."""

import torch

from benchmarks.measure import Row, memory_bandwidth, time_in_turn
from inference.eval_model import for_inference
from inference.generate import GenerationConfig, generate
from inference.sampling import GREEDY
from model import GPT, GPTConfig
from system import runtime

PROMPT, NEW = 32, 128  # tokens


def run(settings):
    rt = runtime.start(settings.device, settings.dtype)
    config = GPTConfig()
    gpt = GPT(config).to(rt.device).eval()
    hf = hugging_face(rt)
    bandwidth = memory_bandwidth(rt.device)
    rows = []
    for B in (1, 4):
        prompts = torch.randint(config.vocab_size, (B, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
        with for_inference(gpt, rt) as prepared:  # preparing the model is not timed
            functions = {
                "ours": lambda prepared=prepared, prompts=prompts: greedy(prepared, prompts, rt),
                "hf": lambda prompts=prompts: hugging_face_greedy(hf, prompts, rt),
            }
            if B == 1:
                functions["no cache"] = lambda prompts=prompts: greedy_without_cache(gpt, prompts, rt)
            seconds = time_in_turn(functions, settings.runs, synchronize=rt.synchronize)
        speed = {name: B * NEW / median for name, (median, _) in seconds.items()}
        limit = B * bandwidth / bytes_per_step(config, rt.dtype)
        note = f"{PROMPT}-token prompt, {NEW} new; spread {seconds['ours'][1]:.0%}"
        name = f"generate/124M/{settings.dtype}/{B}"
        rows.append(Row(name, "tok/s", speed["ours"], speed["hf"], "Hugging Face generate", limit, note))
        if "no cache" in speed:
            rows.append(Row(name, "tok/s", speed["ours"], speed["no cache"], "no cache, as nanoGPT", limit, note))
    return rows


def greedy(gpt, prompts, rt):
    return generate(gpt, prompts, GenerationConfig(NEW, GREEDY, cuda_graph=rt.device.type == "cuda"))


def hugging_face(rt):
    """A GPT-2 124M of `transformers` with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()).to(rt.device, rt.dtype).eval()


@torch.no_grad()
def hugging_face_greedy(hf, prompts, rt):
    ids = torch.tensor(prompts, device=rt.device)
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return hf.generate(ids, attention_mask=torch.ones_like(ids), **options)


@torch.no_grad()
def greedy_without_cache(gpt, prompts, rt):
    ids = torch.tensor(prompts, device=rt.device)
    with rt.autocast():
        for _ in range(NEW):
            ids = torch.cat((ids, gpt(ids)[:, -1:].argmax(-1)), dim=1)
    return ids


def bytes_per_step(config, dtype):
    """Bytes that a decoding step must read: every matrix once, including the head. The cache, 3% here, is left out."""
    return (12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd) * dtype.itemsize
