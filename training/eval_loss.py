"""The validation loss: the mean over the first `val_tokens` tokens of the validation split, the same each time.

Nats per token depend on what a token is. Bits per byte do not: the loss of all scored tokens in bits, divided by the
bytes of UTF-8 that they stand for. So the log has both, as `val` and `val_bpb`.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from tqdm import tqdm

from configurator import Range
from ops.cross_entropy import IGNORE
from system.errors import UserError
from tokens.dataloader import validation_batches
from tokens.tokenizer import get_tokenizer
from training import parallel
from training.schedule import due


@dataclass(frozen=True)
class ValidationSettings:
    val_interval: Annotated[int, Range(0)] = 250
    """steps between validations; 0: only at the start and at the end"""
    val_tokens: Annotated[int, Range(1)] = 10485760
    """tokens in a validation, at most the validation split's"""
    patience: Annotated[int, Range(0)] = 0
    """stop after this many validations in a row without a new lowest loss; 0: never"""


class ValidationLoss:
    name = "validation"
    Settings = ValidationSettings

    def __init__(self, cfg, rt, data, model):
        self.cfg, self.windows = cfg, data.val
        self.byte_lengths = rt.from_master(lambda: find_byte_lengths(data.tokens.tokenizer, rt))

    @staticmethod
    def enabled(cfg):
        return True

    def is_due(self, step, last):
        return last or step == 0 or due(step, self.cfg.val_interval)

    @torch.no_grad()
    def measure(self, run):
        cfg, rt = self.cfg, run.rt
        batches = validation_batches(self.windows, cfg.B, cfg.val_tokens, rt.rank, rt.world_size)
        run.model.eval()
        losses, tokens, size = [], 0, 0  # per batch; targets so far, and their bytes
        hidden = None if rt.master else True  # None: shown on a terminal only
        for x, y in tqdm(batches, "validation", disable=hidden, leave=False, delay=2, unit=" batches"):
            # With shard = full each batch is a collective: no rank may leave the loop alone.
            if run.stop_request.requested and cfg.shard != parallel.FULL:
                break
            with rt.autocast():
                losses.append(run.eval_model(rt.to_device(x), rt.to_device(y), reduction="none").sum())  # over (B, T)
            targets = y[y != IGNORE]
            tokens += len(targets)
            if self.byte_lengths is not None:
                size += self.byte_lengths[targets].sum().item()
        run.model.train()
        device = rt.device if rt.device.type == "cuda" else "cpu"  # mps has no float64
        totals = torch.tensor([0, tokens, size, run.stop_request.requested], dtype=torch.float64, device=device)
        for loss in losses:  # after the loop, so that the device is not waited for in each batch
            totals[0] += loss.to(totals.device).double()  # first to the CPU, then to float64
        loss_sum, tokens, size, stop_flag = rt.sum(totals).tolist()
        if stop_flag > 0:
            return None
        return self.report(run, loss_sum, tokens, size)

    def report(self, run, loss_sum, tokens, size):
        """The values for the log: `loss_sum` is in nats, over `tokens` that stand for `size` bytes (0: unknown)."""
        values = {"val": loss_sum / tokens}
        run.state.record_validation(values["val"])
        line = f"validation loss: {values['val']:.4f}"
        if size > 0:
            values["val_bpb"] = loss_sum / math.log(2) / size
            line += f", {values['val_bpb']:.4f} bits per byte"
        run.rt.print(line)
        return values


def find_byte_lengths(tokenizer, rt):
    """`Tokenizer.byte_lengths` as a tensor, or None if the vocabulary is not at hand, which is said in one line."""
    try:
        return torch.from_numpy(get_tokenizer(tokenizer).byte_lengths())
    except UserError as error:
        rt.print(f"without bits per byte: {error}")
        return None
