"""The validation loss: the mean over the first `val_tokens` tokens of the validation split, the same each time."""

from dataclasses import dataclass
from typing import Annotated

import torch
from tqdm import tqdm

from configurator import Range
from ops.cross_entropy import IGNORE
from tokens.dataloader import validation_batches
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

    @staticmethod
    def enabled(cfg):
        return True

    def is_due(self, step, last):
        return last or step == 0 or due(step, self.cfg.val_interval)

    @torch.no_grad()
    def measure(self, run):
        cfg, rt = self.cfg, run.rt
        batches = validation_batches(self.windows, cfg.B, cfg.val_tokens, rt.rank, rt.world_size)
        device = rt.device if rt.device.type == "cuda" else "cpu"  # mps has no float64
        totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, tokens, ranks asked to stop
        run.model.eval()
        parts = []
        hidden = None if rt.master else True  # None: shown on a terminal only
        for x, y in tqdm(batches, "validation", disable=hidden, leave=False, delay=2, unit=" batches"):
            # With shard = full each batch is a collective: no rank may leave the loop alone.
            if run.stop_request.requested and cfg.shard != parallel.FULL:
                break
            with rt.autocast():
                losses = run.eval_model(rt.to_device(x), rt.to_device(y), reduction="none")  # (B, T)
            parts.append(torch.stack((losses.sum(), (y != IGNORE).sum().to(losses))))
        run.model.train()
        for part in parts:  # after the loop, so that the device is not waited for in each batch
            totals[:2] += part.to(totals)
        totals[2] = run.stop_request.requested
        loss, count, stop_flag = rt.sum(totals).tolist()
        if stop_flag > 0:
            return None
        loss = loss / count
        run.state.record_validation(loss)
        rt.print(f"validation loss: {loss:.4f}")
        return {"val": loss}
