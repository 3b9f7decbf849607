"""The line that each step prints, and its values in the log: loss, speed, time left."""

import contextlib
import datetime
import math
import sys
import time

from system.memory import peak_memory
from training import costs
from training.schedule import due

SHOWN_EVERY = 0.25  # seconds between lines on a terminal; the log has every step
PEAK_MEASUREMENTS = 4  # at most, if the first ones were made while the machine was busy


class Progress:
    """Times the steps. Evaluation and saving are not counted: they end with `restart`."""

    def __init__(self, cfg, rt, model_config, log):
        self.cfg, self.rt, self.model_config, self.log = cfg, rt, model_config, log
        self.reported_loss = False  # of output, in the log
        self.peak_flops = costs.peak_flops(rt.device, rt.dtype) * rt.world_size
        self.peak_measurements = 1
        self.last_shown = -math.inf  # time at which a line was printed

    def start(self, step):
        self.first_step = step
        self.steps_s = self.pauses_s = 0.0  # seconds in steps, the first one excluded, and between steps
        self.clock = time.perf_counter()

    def restart(self):
        """Start the next step's time now, on every rank. What has passed since the last step is a pause."""
        self.rt.barrier()
        self.rt.synchronize()
        now = time.perf_counter()
        self.pauses_s += now - self.clock
        self.clock = now

    @contextlib.contextmanager
    def paused(self):
        """Exclude the time of the block from that of the current step."""
        start = time.perf_counter()
        yield
        pause = time.perf_counter() - start
        self.clock += pause
        self.pauses_s += pause

    def report(self, step, loss, lr, norm):
        """Print the step's line and log its values, every `log_interval` steps, on the master."""
        now = time.perf_counter()
        dt, self.clock = now - self.clock, now  # seconds
        if step > self.first_step:  # the first one includes compilation
            self.steps_s += dt
        if not (self.rt.master and due(step, self.cfg.log_interval)):
            return
        tok_per_sec = self.cfg.total_batch_size / dt
        mfu = self.mfu(tok_per_sec)
        if self.shows(now, step):
            left = datetime.timedelta(seconds=int(self.seconds_left(step, dt)))
            line = f"step {step:4d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {dt * 1000:.0f} ms"
            mark = "" if mfu <= 1 else " (of a peak measured too low)"
            self.rt.print(f"{line} | {tok_per_sec:,.0f} tok/s | {mfu:.0%} mfu{mark} | {left} left")
        if self.rt.terminal.lost and not self.reported_loss:
            self.log.write(step, output_lost=1)
            self.reported_loss = True
        measured = {"dt_ms": dt * 1000, "tok_per_sec": tok_per_sec, "mfu": mfu}
        measured["mem_gb"] = peak_memory(self.rt.device) / 1e9  # the most so far, evaluations included
        self.log.write(step, train=loss, lr=lr, norm=norm, **measured)
        if step == self.first_step + 1:  # by then everything is allocated
            self.rt.print(f"peak memory so far: {measured['mem_gb']:.2f} GB")

    def mfu(self, tok_per_sec):
        """Model FLOPs utilisation. A peak that was measured under load, so that this exceeds 1, is measured again."""
        mfu = costs.mfu(self.model_config, self.cfg.T, tok_per_sec, self.peak_flops)
        if mfu > 1 and self.peak_measurements < PEAK_MEASUREMENTS:
            self.peak_measurements += 1
            self.peak_flops = max(self.peak_flops, costs.peak_flops(self.rt.device, self.rt.dtype) * self.rt.world_size)
            self.clock = time.perf_counter()
            mfu = costs.mfu(self.model_config, self.cfg.T, tok_per_sec, self.peak_flops)
        return mfu

    def shows(self, now, step):
        """Whether to print this step's line: on a terminal a few a second, in a file all; always the last one."""
        last = step + 1 == self.cfg.max_steps
        if sys.stdout.isatty() and not last and now - self.last_shown < SHOWN_EVERY:
            return False
        self.last_shown = now
        return True

    def seconds_left(self, step, dt):
        """Estimate the seconds until the run ends: steps at their mean time, and the pauses of evaluations to come.

        The pauses so far are taken to repeat with each validation.
        """
        done, to_do = step - self.first_step, self.cfg.max_steps - step - 1
        step_s = self.steps_s / done if done else dt
        interval = self.cfg.val_interval if self.cfg.val_interval else self.cfg.max_steps
        pauses_done, pauses_to_do = 1 + done // interval, math.ceil(to_do / interval)
        return step_s * to_do + self.pauses_s / pauses_done * pauses_to_do
