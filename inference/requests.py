"""What evaluation harnesses ask of a model: log-likelihoods of continuations, and text up to a stop string.

Requests are answered in batches by length, and requests with the same context share its tokens. Ranks divide the
batches, which do not depend on the number of ranks: neither does any bit of the answers, which every rank gets.

Shapes: N requests, B rows per batch, E continuations per row.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from inference.eval_model import for_inference, unwrap
from inference.generate import GenerationConfig, generate
from inference.multiple_choice import Example, make_batch, predicting_states, sum_by_ending
from inference.sampling import Sampling
from inference.token_losses import default_batch_tokens, group_by_length, token_losses
from ops.cross_entropy import IGNORE

ROWS = 32  # generated together: a decoding step reads all weights once, however many rows it has


def loglikelihoods(model, pairs, rt, batch_tokens=None, progress=False):
    """Score continuations: [(context ids, continuation ids)], not empty → (log-probabilities, greedy), (N,) each.

    `greedy` tells whether each token of the continuation is the most probable one. What exceeds the model's block_size
    is cut from the left. A collective: every rank must call it with the same pairs.
    """
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(rt.device)
    results = torch.zeros(2, len(pairs), device=rt.device)
    examples, members = share_contexts(pairs, unwrap(model).config.block_size)
    groups = group_by_length([example.row_length() for example in examples], batch_tokens)[rt.rank :: rt.world_size]
    bar = tqdm(total=sum(len(members[i]) for group in groups for i in group), unit="request", disable=not progress)
    with for_inference(model, rt) as gpt, bar:
        for group in groups:
            batch = make_batch(examples, group)
            x, targets = predicting_states(gpt, batch, rt.device)
            most_probable = torch.empty(targets.shape, dtype=torch.bool, device=rt.device)
            losses = sum_by_ending(token_losses(gpt, x, targets, most_probable), batch)  # (B, E)
            misses = sum_by_ending((~most_probable & (targets != IGNORE)).int(), batch)  # (B, E)
            for row, i in enumerate(group):
                requests, count = torch.tensor(members[i], device=rt.device), len(members[i])
                results[0, requests] = -losses[row, :count]
                results[1, requests] = (misses[row, :count] == 0).float()
            bar.update(sum(len(members[i]) for i in group))
    logprobs, greedy = rt.sum(results).cpu()
    return logprobs, greedy > 0


def share_contexts(pairs, block_size):
    """Group pairs by context: ([`Example`], for each the numbers of its pairs). No row exceeds block_size tokens."""
    examples, members, current = [], [], {}  # current: context → the number of the example that can take more
    for number, (ctx, continuation) in enumerate(pairs):
        ending = continuation[-block_size:]
        cut = tuple(ctx[-(block_size + 1 - len(ending)) :])
        i = current.get(cut)
        if i is None or examples[i].row_length() + len(ending) - 1 > block_size:
            i = current[cut] = len(examples)
            examples.append(Example(i, 0, list(cut), []))
            members.append([])
        examples[i].endings.append(ending)
        members[i].append(number)
    return examples, members


@dataclass(frozen=True)
class Prompt:
    """A request for text."""

    ids: tuple[int, ...]
    stops: tuple[str, ...]  # the text ends before the first of these
    max_new_tokens: int
    sampling: Sampling


def generate_until(model, tokenizer, prompts, rt, progress=False):
    """Continue `Prompt`s up to a stop string, end-of-text or `max_new_tokens`. Returns the texts, without the stop.

    A prompt keeps its last tokens, so that the new ones fit in the model's block_size. A collective: every rank must
    call it with the same prompts.
    """
    longest = max(prompt.max_new_tokens for prompt in prompts)
    ids = torch.zeros(len(prompts), longest, dtype=torch.long, device=rt.device)  # new ids + 1; 0: none
    groups = group_prompts(prompts)[rt.rank :: rt.world_size]
    bar = tqdm(total=sum(map(len, groups)), unit="request", disable=not progress)
    with for_inference(model, rt) as gpt, bar:
        for group in groups:
            for number, new in zip(group, continue_group(gpt, tokenizer, [prompts[i] for i in group]), strict=True):
                ids[number, : len(new)] = torch.tensor(new, dtype=torch.long, device=rt.device) + 1
            bar.update(len(group))
    rows = rt.sum(ids).tolist()
    texts = [tokenizer.decode([i - 1 for i in row if i > 0]) for row in rows]
    return [cut_at_stop(text, prompt.stops) for text, prompt in zip(texts, prompts, strict=True)]


def group_prompts(prompts):
    """Lists of at most ROWS prompt numbers, longest prompts first; those of a list differ only in their ids."""
    by_settings = {}
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids)):
        prompt = prompts[i]
        by_settings.setdefault((prompt.stops, prompt.max_new_tokens, prompt.sampling), []).append(i)
    return [numbers[k : k + ROWS] for numbers in by_settings.values() for k in range(0, len(numbers), ROWS)]


def continue_group(gpt, tokenizer, prompts):
    """The new ids of prompts that differ only in their ids; a row ends when its text contains a stop string."""
    first = prompts[0]
    stops = [stop.encode() for stop in first.stops]
    longest = max(map(len, stops), default=0)
    written = [b""] * len(prompts)

    def ends(row, token):
        new = tokenizer.decode_bytes([token])
        written[row] += new
        tail = written[row][-(longest + len(new)) :]
        return any(stop in tail for stop in stops)

    room = max(1, gpt.config.block_size - first.max_new_tokens)
    config = GenerationConfig(first.max_new_tokens, first.sampling, eot=tokenizer.eot)
    return generate(gpt, [list(prompt.ids[-room:]) for prompt in prompts], config, ends)


def cut_at_stop(text, stops):
    for stop in stops:
        text = text.partition(stop)[0]
    return text
