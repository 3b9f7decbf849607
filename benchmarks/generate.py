"""How fast text is made, beside Hugging Face's `generate` and the loop that computes everything anew for each token."""

import torch

from benchmarks.measure import Row, memory_bandwidth, time_in_turn
from inference.eval_model import reading
from inference.generate import generate
from model import GPT, GPTConfig
from system import runtime

PROMPT, NEW = 32, 128  # tokens


def run(settings):
    device_run = runtime.start(settings.device, settings.dtype)
    config = GPTConfig()
    gpt = GPT(config).to(device_run.device).eval()
    hf = hugging_face(device_run)
    bandwidth = memory_bandwidth(device_run.device)
    rows = []
    for B in (1, 4):
        prompts = torch.randint(config.vocab_size, (B, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()
        with reading(gpt, device_run) as ready:  # each model is brought into its format beforehand
            ways = {
                "ours": lambda ready=ready, prompts=prompts: ours(ready, prompts, device_run),
                "hf": lambda prompts=prompts: hf_generate(hf, prompts, device_run),
            }
            if B == 1:
                ways["no cache"] = lambda prompts=prompts: without_cache(gpt, prompts, device_run)
            seconds = time_in_turn(ways, settings.runs, synchronize=device_run.synchronize)
        speed = {name: B * NEW / median for name, (median, _) in seconds.items()}
        limit = B * bandwidth / bytes_a_step(config, device_run.dtype)
        note = f"{PROMPT}-token prompt, {NEW} new; spread {seconds['ours'][1]:.0%}"
        name = f"generate/124M/{settings.dtype}/{B}"
        rows.append(Row(name, "tok/s", speed["ours"], speed["hf"], "Hugging Face generate", limit, note))
        if "no cache" in speed:
            rows.append(Row(name, "tok/s", speed["ours"], speed["no cache"], "no cache, as nanoGPT", limit, note))
    return rows


def ours(gpt, prompts, device_run):
    return generate(gpt, prompts, NEW, temperature=0, cuda_graph=device_run.device.type == "cuda")


def hugging_face(device_run):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config()).to(device_run.device, device_run.dtype).eval()


@torch.no_grad()
def hf_generate(hf, prompts, device_run):
    ids = torch.tensor(prompts, device=device_run.device)
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return hf.generate(ids, attention_mask=torch.ones_like(ids), **settings)


@torch.no_grad()
def without_cache(gpt, prompts, device_run):
    ids = torch.tensor(prompts, device=device_run.device)
    with device_run.autocast():
        for _ in range(NEW):
            ids = torch.cat((ids, gpt(ids)[:, -1:].argmax(-1)), dim=1)
    return ids


def bytes_a_step(config, dtype):
    """What one step must read: every matrix once, the head among them. The cache, 3% of that here, is left out."""
    return (12 * config.n_layer * config.n_embd**2 + config.vocab_size * config.n_embd) * dtype.itemsize
