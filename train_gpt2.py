"""Train a GPT-2.

    python train_gpt2.py [config/FILE.py ...] [--key value ...]
    torchrun --standalone --nproc_per_node=8 train_gpt2.py [config/FILE.py ...] [--key value ...]

Tokens on disk → batches → `GPT` → loss → optimizer → checkpoint and log → samples and plots. `Trainer.run` is the loop.
"""

import dataclasses
import math
import time
from pathlib import Path

import torch
from tqdm import tqdm

import budget
import checkpoint
import plot
import runlog
import runtime
from configurator import configure
from dataloader import TrainLoader, validation_batches
from errors import UserError, command
from loss import IGNORE
from optimizer import build_optimizers
from run_setup import build_model, claim_log_dir, describe_run, open_run_data, print_banner, wrap_model
from sample import sample_texts
from tokenizer import get_tokenizer
from train_config import TrainConfig


@command
def main(argv=None):
    cfg = configure(TrainConfig, argv)
    rt = runtime.start(cfg.device, cfg.dtype, cfg.seed, cfg.dist_timeout)
    cfg.check_batch(rt.world_size)
    try:
        Trainer(cfg, rt).run()
    except RuntimeError as error:
        if not runtime.is_out_of_memory(error):
            raise
        raise UserError(
            f"out of memory on {rt.device}: lower B (now {cfg.B}; total_batch_size stays, in more micro-steps),"
            " lower T, or set --activation_checkpointing"
        ) from error
    finally:
        rt.stop()


class Trainer:
    """One run: everything that a step needs, set up once, and the loop."""

    def __init__(self, cfg, rt):
        self.cfg, self.rt = cfg, rt
        state = claim_log_dir(cfg, rt)
        data = open_run_data(cfg, rt)
        self.raw_model = build_model(cfg, rt, data.tokens)
        self.eval_model, self.train_model = wrap_model(self.raw_model, cfg, rt)
        self.val_windows = data.val
        self.loader = TrainLoader(data.train, cfg.B, cfg.total_batch_size, cfg.seed, rt.rank, rt.world_size)
        self.optimizers = build_optimizers(
            self.raw_model, cfg.optimizer, cfg.max_lr, (cfg.beta1, cfg.beta2), cfg.eps, cfg.weight_decay
        )
        self.scaler = torch.amp.GradScaler(rt.device.type, enabled=rt.dtype == torch.float16)
        self.tokenizer_name = data.tokens.tokenizer
        self.tokenizer = tokenizer_for_samples(cfg, rt, self.tokenizer_name)
        self.peak_flops = budget.peak_flops(rt.device, rt.dtype) * rt.world_size
        self.step = 0  # updates made
        self.val_loss = None  # the last validation's
        self.bad_steps = 0  # skipped in a row
        if state is not None:
            self.load_state_dict(state)
        self.start_step = self.step
        self.log = runlog.RunLog(cfg.log_dir, self.step) if rt.master else None
        if rt.master:
            describe_run(cfg, rt)
        print_banner(cfg, rt, data, self.raw_model, self.loader, self.optimizers)

    def run(self):
        """The loop. What is due at step s sees the weights after s updates."""
        cfg = self.cfg
        self.run_start = self.clock = time.perf_counter()
        while True:
            last = self.step >= cfg.max_steps
            if last or self.step == 0 or due(self.step, cfg.val_interval):
                self.validate()
            if due(self.step, cfg.sample_interval) or (last and cfg.sample_interval):
                self.sample()
            if last or (due(self.step, cfg.checkpoint_interval) and self.step > self.start_step):
                self.save()
            if last:
                break
            self.update()
            self.step += 1
        self.rt.print(f"done after {self.step} steps: {cfg.log_dir} holds the log, the plot and the checkpoints")

    def update(self):
        """One step: the gradient of the mean loss over total_batch_size tokens, clipped and applied."""
        cfg, rt = self.cfg, self.rt
        lr = learning_rate(self.step, cfg)
        self.optimizers.set_lr(lr)
        rt.seed_step(cfg.seed, self.step)
        if cfg.overfit_batch:
            self.loader.position = 0
        mean_loss = torch.zeros((), device=rt.device)
        for micro_step, (x, y) in enumerate(self.loader.next_step(), 1):
            if rt.world_size > 1:  # gradients cross the wire once an update
                self.train_model.require_backward_grad_sync = micro_step == self.loader.grad_accum_steps
            with rt.autocast():
                loss = self.train_model(rt.to_device(x), rt.to_device(y)) / self.loader.grad_accum_steps
            self.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        self.optimizers.unscale(self.scaler)
        norm = torch.nn.utils.clip_grad_norm_(self.raw_model.parameters(), cfg.grad_clip or math.inf)
        mean_loss = rt.sum(mean_loss) / rt.world_size
        loss, norm = torch.stack((mean_loss, norm)).tolist()  # the step's one wait for the device
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizers.step(self.scaler)
            self.bad_steps = 0
        else:
            self.refuse_update(loss, norm)
        self.scaler.update()
        self.optimizers.zero_grad()
        self.report(loss, lr, norm)

    def refuse_update(self, loss, norm):
        """Skip a step whose loss or gradient isn't finite; a few in a row end the run."""
        searching = self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > 1
        self.bad_steps += not searching  # float16's scaler finds its scale by overflowing
        self.rt.print(f"step {self.step}: loss {loss}, gradient norm {norm}: update skipped")
        if self.bad_steps >= self.cfg.max_bad_steps:
            found = checkpoint.list_checkpoints(self.cfg.log_dir)
            good = f"the last checkpoint is {found[max(found)]}" if found else "no checkpoint was written yet"
            raise UserError(
                f"stopped at step {self.step}: no finite loss and gradient for {self.bad_steps} steps; {good}; lower"
                f" max_lr (now {self.cfg.max_lr}), or look for what broke the model with --overfit_batch"
            )

    def report(self, loss, lr, norm):
        """The step's line on the screen and its values in the log."""
        now = time.perf_counter()
        dt, self.clock = now - self.clock, now  # seconds; evaluation is not in it
        if not (self.rt.master and due(self.step, self.cfg.log_interval)):
            return
        tok_per_sec = self.cfg.total_batch_size / dt
        mfu = budget.mfu(self.raw_model.config, self.cfg.T, tok_per_sec, self.peak_flops)
        done, to_do = self.step + 1 - self.start_step, self.cfg.max_steps - self.step - 1
        left = clock_time((now - self.run_start) / done * to_do)
        line = f"step {self.step:4d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {dt * 1000:.0f} ms"
        self.rt.print(f"{line} | {tok_per_sec:,.0f} tok/s | {mfu:.0%} mfu | {left} left")
        self.log.write(self.step, train=loss, lr=lr, norm=norm, dt_ms=dt * 1000, tok_per_sec=tok_per_sec, mfu=mfu)

    # What follows happens between steps: it changes nothing that training depends on, nor counts as its time.

    @torch.no_grad()
    def validate(self):
        """Mean loss over the first val_tokens of the validation split: the same tokens each time."""
        cfg, rt = self.cfg, self.rt
        self.raw_model.eval()
        batches = validation_batches(self.val_windows, cfg.B, cfg.val_tokens, rt.rank, rt.world_size)
        sums = []
        for x, y in tqdm(batches, "validation", disable=not rt.master, leave=False, delay=2, unit=" batches"):
            with rt.autocast():
                losses = self.eval_model(rt.to_device(x), rt.to_device(y), reduction="none")
            sums.append(torch.stack((losses.sum(), (y != IGNORE).sum().to(losses))))
        loss, count = rt.sum(torch.stack(sums).sum(0)).tolist()
        self.raw_model.train()
        self.val_loss = loss / count
        rt.print(f"validation loss: {self.val_loss:.4f}")
        if rt.master:
            self.log.write(self.step, val=self.val_loss)
            if self.step:
                plot.plot_runs([cfg.log_dir], Path(cfg.log_dir) / "plot.png")
        self.restart_clock()

    def sample(self):
        """Print some of the model's words, drawn from a generator of their own."""
        cfg = self.cfg
        if self.rt.master and self.tokenizer is not None:
            sizes = {"num_samples": cfg.num_samples, "max_new_tokens": cfg.sample_tokens}
            texts = sample_texts(self.raw_model, self.tokenizer, self.rt, cfg.sample_prompt, seed=cfg.seed, **sizes)
            for number, text in enumerate(texts, 1):
                self.rt.print(f"[Sample {number}] {text}")
        self.restart_clock()

    def save(self):
        if self.rt.master:
            checkpoint.save(checkpoint.path_of(self.cfg.log_dir, self.step), self.state_dict())
        self.restart_clock()

    def restart_clock(self):
        """The next step's time begins now, on every rank."""
        self.rt.barrier()
        self.rt.synchronize()
        self.clock = time.perf_counter()

    def state_dict(self):
        """All that a resumed run needs: tensors and plain values only."""
        return {
            "model": self.raw_model.state_dict(),
            "model_config": dataclasses.asdict(self.raw_model.config),
            "tokenizer": self.tokenizer_name,
            "train_config": dataclasses.asdict(self.cfg),
            "step": self.step,
            "val_loss": self.val_loss,
            "optimizer": self.optimizers.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": {"seed": self.cfg.seed},  # every draw is a function of seed, step and rank: Runtime.seed_step
            "bad_steps": self.bad_steps,
        }

    def load_state_dict(self, state):
        self.raw_model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        self.step, self.val_loss, self.bad_steps = state["step"], state["val_loss"], state["bad_steps"]


def tokenizer_for_samples(cfg, rt, name):
    """The tokenizer, or None where no samples are wanted or its vocabulary can't be had: that must not end a run."""
    if not (rt.master and cfg.sample_interval):
        return None
    try:
        return get_tokenizer(name)
    except UserError as error:
        rt.print(f"no samples will be shown: {error}")
        return None


def due(step, interval):
    """Whether something that happens every `interval` steps (0: never) happens at `step`."""
    return interval > 0 and step % interval == 0


def learning_rate(step, cfg):
    """Linear warmup to max_lr, a cosine to min_lr at max_steps, then min_lr (GPT-3 paper, appendix B)."""
    if step < cfg.warmup_steps:
        return cfg.max_lr * (step + 1) / cfg.warmup_steps
    if step >= cfg.max_steps:
        return cfg.min_lr
    progress = (step - cfg.warmup_steps) / (cfg.max_steps - cfg.warmup_steps)  # 0 … 1
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.max_lr - cfg.min_lr)


def clock_time(seconds):
    """3661.5 → "1:01:01"."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


if __name__ == "__main__":
    main()
