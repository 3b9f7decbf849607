"""Score multiple-choice examples: a context and several endings, each scored by the loss of its tokens.

An example is one row of tokens: its context, then its endings one after the other. A mask lets each ending attend to
the context and itself, and its positions continue from the context's. So one row gives the same losses as one row per
ending would, with about half the tokens.

Shapes: N examples with E endings each, B examples per batch, T tokens per row, C = n_embd, V ids.
"""

from dataclasses import dataclass

import torch
from tqdm import tqdm

from inference.eval_model import for_inference
from inference.token_losses import default_batch_tokens, group_by_length, token_losses
from ops.cross_entropy import IGNORE


@dataclass(frozen=True)
class Example:
    ind: int  # its number in the data set
    label: int  # which ending is right
    ctx: list[int]  # ids, at least one
    endings: list[list[int]]  # E lists of ids, at least one each

    def row_length(self):
        """Tokens in the example's row. The last token of each ending is only a target, not an input."""
        return len(self.ctx) + sum(len(ending) - 1 for ending in self.endings)


@dataclass(frozen=True)
class Batch:
    """B rows, padded on the right to T tokens. M of the B·T positions predict at least one ending's token."""

    index: torch.Tensor  # (B,) which examples
    ids: torch.Tensor  # (B, T)
    pos: torch.Tensor  # (B, T) positions for the position embedding
    branch: torch.Tensor  # (B, T) 0: context, 1 … E: that ending, E + 1: padding
    scored: torch.Tensor  # (M,) the predicting positions, as indices into B·T
    targets: torch.Tensor  # (M, E) the next token there in each ending, or IGNORE


@dataclass(frozen=True)
class Task:
    examples: list[Example]  # all of them, in the file's order
    batches: list[Batch]  # those of this rank
    note: str = ""  # what was cut to fit the model's block_size, or ""


@dataclass(frozen=True)
class Scores:
    """Results in the order of `Task.examples`, the same on every rank."""

    losses: torch.Tensor  # (N, E) sum over the ending's tokens, in nats
    lengths: torch.Tensor  # (N, E) tokens scored
    labels: torch.Tensor  # (N,)

    def predictions(self):
        """The ending with the lowest loss sum, and the ending with the lowest mean loss per token: (N,) each."""
        return self.losses.argmin(1), (self.losses / self.lengths).argmin(1)

    def counts(self):
        """(correct by sum, correct by mean, N)."""
        by_sum, by_mean = self.predictions()
        return (by_sum == self.labels).sum().item(), (by_mean == self.labels).sum().item(), len(self.labels)


def score(model, task, rt, progress=False):
    """Compute the `Scores` of a task. A collective: every rank must call it.

    `model` is a GPT or a compiled or distributed wrapper; it and torch's random state do not change. Batches do not
    depend on the number of ranks, and neither does any bit of the scores. Another `batch_tokens` changes only the
    rounding of losses (by less than 1e-4 in float32, by some hundredths in bfloat16).
    """
    losses = torch.zeros(len(task.examples), len(task.examples[0].endings), device=rt.device)
    bar = tqdm(
        total=sum(len(batch.index) for batch in task.batches), unit="example", disable=None if progress else True
    )
    counts = torch.zeros(3, dtype=torch.long)  # of this rank so far
    with for_inference(model, rt) as gpt, bar:
        for batch in task.batches:
            batch_losses = score_batch(gpt, batch, rt.device)
            losses[batch.index.to(rt.device)] = batch_losses
            if progress:
                examples = [task.examples[i] for i in batch.index.tolist()]
                counts += torch.tensor(scores_of(examples, batch_losses).counts())
                acc, acc_norm = (counts[:2] / counts[2]).tolist()
                bar.set_postfix(acc=f"{acc:.4f}", acc_norm=f"{acc_norm:.4f}", refresh=False)
                bar.update(len(examples))
    rt.sum(losses)  # each example has its losses on one rank and zeros on the others
    return scores_of(task.examples, losses)


def scores_of(examples, losses):
    lengths = torch.tensor([[len(ending) for ending in example.endings] for example in examples])
    return Scores(losses.cpu(), lengths, torch.tensor([example.label for example in examples]))


def score_batch(gpt, batch, device):
    """Summed losses of the endings, (B, E)."""
    x, targets = predicting_states(gpt, batch, device)
    return sum_by_ending(token_losses(gpt, x, targets), batch)


def predicting_states(gpt, batch, device):
    """The final hidden states (M, C) at the positions that predict an ending's token, and the targets there (M, E)."""
    ids, pos, branch, scored, targets = (
        t.to(device, non_blocking=True) for t in (batch.ids, batch.pos, batch.branch, batch.scored, batch.targets)
    )
    return gpt.hidden(ids, SharedContext(pos, branch)).flatten(0, 1)[scored], targets


def sum_by_ending(values, batch):
    """Sum values of the predicting positions, (M, E), over each ending of each row: (B, E)."""
    B, T = batch.ids.shape
    all_positions = values.new_zeros(B * T, values.size(1))
    all_positions[batch.scored.to(values.device)] = values
    return all_positions.view(B, T, -1).sum(1)


class SharedContext:
    """Implements the `Cache` interface without storing anything: supplies the rows' positions and attention mask.

    `append` returns the keys and values it is given; each token attends to earlier ones of the context and its branch.
    """

    def __init__(self, pos, branch):
        T = branch.size(1)
        causal = torch.ones(T, T, dtype=torch.bool, device=branch.device).tril()
        same_story = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])  # (B, T, T): query, key
        self.visible = (causal & same_story)[:, None]  # (B, 1, T, T)
        self.pos = pos  # (B, T)

    def start(self, T):
        return self.pos

    def append(self, layer, k, v):
        return k, v, self.visible


def make_task(examples, rt, batch_tokens=None, note=""):
    """Batch `examples` and keep this rank's batches. `batch_tokens` limits B·T; None chooses it by the device."""
    if batch_tokens is None:
        batch_tokens = default_batch_tokens(rt.device)
    groups = group_by_length([example.row_length() for example in examples], batch_tokens)[rt.rank :: rt.world_size]
    return Task(examples, [make_batch(examples, group) for group in groups], note)


def make_batch(examples, group):
    """The `Batch` of the examples with these numbers. The losses of endings that an example does not have are 0."""
    E = max(len(examples[i].endings) for i in group)
    rows = [make_row(examples[i], E) for i in group]
    T = max(len(ids) for ids, _, _, _ in rows)
    padding = (0, 0, E + 1, [IGNORE] * E)
    ids, pos, branch, targets = (
        torch.tensor([row[column] + [fill] * (T - len(row[column])) for row in rows])
        for column, fill in enumerate(padding)
    )
    targets = targets.flatten(0, 1)  # (B·T, E)
    scored = (targets != IGNORE).any(1).nonzero()[:, 0]
    return Batch(torch.tensor(group), ids, pos, branch, scored, targets[scored])


def make_row(example, E):
    """Lists of one example's ids, positions, branches, and the next token in each of E endings (IGNORE for none)."""
    n = len(example.ctx)
    ids, pos, branch = list(example.ctx), list(range(n)), [0] * n
    firsts = [ending[0] for ending in example.endings]
    targets = [[IGNORE] * E for _ in range(n - 1)] + [firsts + [IGNORE] * (E - len(firsts))]
    for i, ending in enumerate(example.endings):
        ids += ending[:-1]
        pos += range(n, n + len(ending) - 1)
        branch += [i + 1] * (len(ending) - 1)
        targets += [[token if i == j else IGNORE for j in range(E)] for token in ending[1:]]
    return ids, pos, branch, targets
