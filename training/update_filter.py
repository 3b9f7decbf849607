"""Which updates are applied: those with a finite loss and gradient that are, if asked, no outliers."""

import math

from formats import checkpoint
from system.errors import UserError
from system.words import format_count


class UpdateFilter:
    """Decides after each backward pass whether the update is applied. Every rank decides the same."""

    def __init__(self, cfg, rt, scaler, state, log):
        self.cfg, self.rt, self.scaler, self.state, self.log = cfg, rt, scaler, state, log
        self.rejected = 0  # updates in a row, without those by which float16's scale is searched

    def accepts(self, step, loss, norm):
        """Whether to apply the update of this loss and gradient norm."""
        outlier = self.is_outlier(loss, norm)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite and not outlier:
            self.state.bad_steps = self.rejected = 0
            return True
        self.state.skipped += 1
        searching = not finite and self.scale_is_being_searched(loss)
        if not searching:
            self.rejected += 1
        if not finite and not searching:
            self.state.bad_steps += 1
        self.rt.print(f"step {step}: loss {loss:.4f}, gradient norm {norm:.2f}: update skipped")
        if self.log is not None:
            self.log.write(step, skipped=self.state.skipped)
        return False

    def is_outlier(self, loss, norm):
        """Compare loss and norm with the last 128 of each, then append both to these windows."""
        found = False
        for value, window, limit in (
            (loss, self.state.recent_losses, self.cfg.skip_loss_zscore),
            (norm, self.state.recent_norms, self.cfg.skip_norm_zscore),
        ):
            found |= limit > 0 and zscore(value, window) > limit
            if math.isfinite(value):
                window.append(value)
        return found

    def scale_is_being_searched(self, loss):
        """Whether float16's gradient scaler is still lowering its scale, which it does after each overflow."""
        return self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > 1

    def check_bad_steps(self, step):
        """Raise `UserError` after `max_bad_steps` consecutive steps whose loss or gradient is not finite."""
        if self.state.bad_steps < self.cfg.max_bad_steps:
            return
        path = checkpoint.newest(self.cfg.log_dir)
        last = "no checkpoint was written yet" if path is None else f"the last checkpoint is {path}"
        raise UserError(
            f"stopped at step {step}: no finite loss and gradient for {format_count(self.state.bad_steps, 'step')};"
            f" {last}; lower max_lr (now {self.cfg.max_lr}), or test the model with --overfit_batch"
        )


def zscore(value, window):
    """Standard deviations between `value` and the mean of `window`, a deque; 0 until the window is full.

    The rule of llm.c's outlier detector.
    """
    if len(window) < window.maxlen or not math.isfinite(value):
        return 0.0
    mean = sum(window) / len(window)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in window) / len(window))
    if deviation == 0:
        return 0.0
    return (value - mean) / deviation
