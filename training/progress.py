"""The line that each step prints, and its values in the log: loss, speed, time left."""

import datetime
import time

from system.memory import peak_memory
from training import costs
from training.schedule import due


class Progress:
    """Times the steps. Evaluation and saving are not counted: they end with `restart`."""

    def __init__(self, cfg, rt, model_config, log):
        self.cfg, self.rt, self.model_config, self.log = cfg, rt, model_config, log
        self.reported_loss = False  # of output, in the log
        self.peak_flops = costs.peak_flops(rt.device, rt.dtype) * rt.world_size

    def start(self, step):
        self.first_step = step
        self.run_start = self.clock = time.perf_counter()

    def restart(self):
        """Start the next step's time now, on every rank."""
        self.rt.barrier()
        self.rt.synchronize()
        self.clock = time.perf_counter()

    def report(self, step, loss, lr, norm):
        """Print the step's line and log its values, every `log_interval` steps, on the master."""
        now = time.perf_counter()
        dt, self.clock = now - self.clock, now  # seconds
        if not (self.rt.master and due(step, self.cfg.log_interval)):
            return
        tok_per_sec = self.cfg.total_batch_size / dt
        mfu = costs.mfu(self.model_config, self.cfg.T, tok_per_sec, self.peak_flops)
        done, to_do = step + 1 - self.first_step, self.cfg.max_steps - step - 1
        left = datetime.timedelta(seconds=int((now - self.run_start) / done * to_do))
        line = f"step {step:4d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {dt * 1000:.0f} ms"
        self.rt.print(f"{line} | {tok_per_sec:,.0f} tok/s | {mfu:.0%} mfu | {left} left")
        if self.rt.terminal.lost and not self.reported_loss:
            self.log.write(step, output_lost=1)
            self.reported_loss = True
        measured = {"dt_ms": dt * 1000, "tok_per_sec": tok_per_sec, "mfu": mfu}
        measured["mem_gb"] = peak_memory(self.rt.device) / 1e9  # the most so far, evaluations included
        self.log.write(step, train=loss, lr=lr, norm=norm, **measured)
        if step == self.first_step + 1:  # by then everything is allocated
            self.rt.print(f"peak memory so far: {measured['mem_gb']:.2f} GB")
