"""Train a GPT-2.

    python train_gpt2.py [config/FILE.py ...] [--key value ...]
    torchrun --standalone --nproc_per_node=8 train_gpt2.py [config/FILE.py ...] [--key value ...]

Tokens on disk → batches → `GPT` → loss → optimizer → checkpoint and log → samples and plots. `Trainer.run` is the loop.
"""

import dataclasses
import datetime
import functools
import math
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

import hellaswag
from configurator import configure
from formats import checkpoint
from ops.cross_entropy import IGNORE
from sample import sample_texts
from system import runtime
from system.errors import UserError, command
from system.signals import StopRequest
from tokens.dataloader import TrainLoader, validation_batches
from tracking import runlog
from tracking.curves import plot_runs
from tracking.sinks import open_sinks
from training import costs, dry_run, parallel, profiling
from training.config import TrainConfig
from training.micro_batch import settle_B
from training.optimizer import build_optimizers
from training.outliers import OutlierDetector
from training.setup import (
    build_model,
    check_resume,
    claim_log_dir,
    describe_run,
    open_run_data,
    prepare_extras,
    print_banner,
)

PROFILE_AFTER = 5  # steps: by then all is compiled and the memory is there


@command
def main(argv=None):
    cfg = configure(TrainConfig, argv)
    if cfg.dry_run:
        dry_run.print_plan(cfg)
        return
    rt = runtime.start(cfg.device, cfg.dtype, cfg.seed, cfg.dist_timeout, cfg.deterministic)
    cfg.check_batch(rt.world_size)
    try:
        with StopRequest(rt.print) as stop:
            Trainer(cfg, rt, stop).run()
    except UserError:
        rt.close()
        raise
    except RuntimeError as error:
        if runtime.is_out_of_memory(error):
            raise UserError(
                f"out of memory on {rt.device}: lower B (now {cfg.B}; total_batch_size stays, in more micro-steps),"
                " lower T, or set --activation_checkpointing"
            ) from error
        if rt.world_size > 1 and runtime.is_lost_rank(error):
            reason = str(error).split(". ")[0]
            print(f"error: rank {rt.rank} lost another rank ({reason}); go on with --resume", file=sys.stderr)
            os._exit(1)  # without the goodbyes that would wait for that rank
        raise
    rt.close()


class Trainer:
    """One run: everything that a step needs, set up once, and the loop."""

    def __init__(self, cfg, rt, stop):
        self.rt, self.stop = rt, stop
        state = claim_log_dir(cfg, rt)
        data = open_run_data(cfg, rt)
        if state is not None:
            check_resume(cfg, state, data)
        self.raw_model = build_model(cfg, rt, data.tokens, state)
        self.cfg = cfg = settle_B(cfg, rt, self.raw_model, state)
        self.eval_model, self.train_model = parallel.wrap_model(self.raw_model, cfg, rt)
        self.val_windows = data.val
        self.loader = TrainLoader(data.train, cfg.B, cfg.total_batch_size, cfg.seed, rt.rank, rt.world_size)
        betas, shared = (cfg.beta1, cfg.beta2), cfg.shard == parallel.OPTIMIZER and rt.world_size > 1
        self.optimizers = build_optimizers(
            self.raw_model, cfg.optimizer, cfg.max_lr, betas, cfg.eps, cfg.weight_decay, shared
        )
        self.scaler = torch.amp.GradScaler(rt.device.type, enabled=rt.dtype == torch.float16)
        self.tokenizer_name = data.tokens.tokenizer
        self.tokenizer, self.hellaswag = prepare_extras(cfg, rt, self.tokenizer_name, self.raw_model.config)
        self.peak_flops = costs.peak_flops(rt.device, rt.dtype) * rt.world_size
        self.step = 0  # updates made
        self.val_loss = self.val_step = None  # the last validation's, and of the weights after how many updates
        self.best = None  # (validation loss, step) of the best checkpoint
        self.bad_steps = self.skipped = 0  # without a finite gradient, in a row; updates skipped in all
        self.outliers = [OutlierDetector(cfg.skip_loss_zscore), OutlierDetector(cfg.skip_norm_zscore)]
        self.stopping = False  # all ranks have agreed to stop
        if state is not None:
            self.load_state_dict(state)
        self.start_step = self.step
        if rt.master:
            self.log = runlog.RunLog(cfg.log_dir, self.step, open_sinks(cfg, self.step))
            describe_run(cfg, rt, data, self.raw_model, self.step)
        print_banner(cfg, rt, data, self.raw_model, self.loader, self.optimizers)

    def run(self):
        """The loop. What is due at step s sees the weights after s updates."""
        cfg = self.cfg
        self.run_start = self.clock = time.perf_counter()
        while True:
            last = self.step >= cfg.max_steps
            if not self.stopping:
                self.evaluate(last)
            if last or self.stopping or (due(self.step, cfg.checkpoint_interval) and self.step > self.start_step):
                self.save()
            if last or self.stopping:
                break
            if cfg.profile and self.step == min(self.start_step + PROFILE_AFTER, cfg.max_steps - 1):
                self.profile()
            else:
                self.update()
            self.step += 1
        how = f"stopped on request after {self.step} steps, go on with --resume" if self.stopping else "done"
        self.rt.print(f"{how}: {cfg.log_dir} holds the log, the plot and the checkpoints")

    def profile(self):
        """The same as `update`, and afterwards what took its time."""
        self.rt.synchronize()  # the step before may still be under way on the device
        with profiling.step_profiler(self.rt) as profiler:
            self.update()
            self.rt.synchronize()
        if self.rt.master:
            profiling.print_top(profiler, self.rt.device.type == "cuda")
            path = Path(self.cfg.log_dir) / f"trace_{self.step:05d}.json.gz"
            self.try_to_write(path, functools.partial(profiling.write_trace, profiler=profiler))
        self.restart_clock()

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
            last = micro_step == self.loader.grad_accum_steps  # gradients cross the wire once an update
            parallel.synchronize_gradients(self.train_model, now=last)
            with rt.autocast():
                loss = self.train_model(rt.to_device(x), rt.to_device(y)) / self.loader.grad_accum_steps
            self.scaler.scale(loss).backward()
            mean_loss += loss.detach()
        self.optimizers.unscale(self.scaler)
        norm = parallel.clip_gradients(self.raw_model, cfg.grad_clip or math.inf)
        stop = torch.full_like(mean_loss, self.stop.requested)  # ranks agree on stopping by the way
        mean_loss, stop = rt.sum(torch.stack((mean_loss, stop))) / rt.world_size
        loss, norm, stop = torch.stack((mean_loss, norm, stop)).tolist()  # the step's one wait for the device
        self.stopping = stop > 0
        if self.is_good(loss, norm):
            self.optimizers.step(self.scaler)
        self.scaler.update()
        self.optimizers.zero_grad()
        self.report(loss, lr, norm)

    def is_good(self, loss, norm):
        """Whether the update is to be applied: loss and gradient are finite and, if asked, like those before.

        The same on every rank, since loss and norm are. A few steps in a row that aren't finite end the run.
        """
        unlike = [outliers.is_outlier(value) for outliers, value in zip(self.outliers, (loss, norm), strict=True)]
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite and not any(unlike):
            self.bad_steps = 0
            return True
        self.skipped += 1
        searching = self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > 1
        self.bad_steps += not (finite or searching)  # float16's scaler finds its scale by overflowing
        self.rt.print(f"step {self.step}: loss {loss:.4f}, gradient norm {norm:.2f}: update skipped")
        if self.rt.master:
            self.log.write(self.step, skipped=self.skipped)
        if self.bad_steps >= self.cfg.max_bad_steps:
            found = checkpoint.list_checkpoints(self.cfg.log_dir)
            good = f"the last checkpoint is {found[max(found)]}" if found else "no checkpoint was written yet"
            raise UserError(
                f"stopped at step {self.step}: no finite loss and gradient for {self.bad_steps} steps; {good}; lower"
                f" max_lr (now {self.cfg.max_lr}), or look for what broke the model with --overfit_batch"
            )
        return False

    def report(self, loss, lr, norm):
        """The step's line on the screen and its values in the log."""
        now = time.perf_counter()
        dt, self.clock = now - self.clock, now  # seconds; evaluation is not in it
        if not (self.rt.master and due(self.step, self.cfg.log_interval)):
            return
        tok_per_sec = self.cfg.total_batch_size / dt
        mfu = costs.mfu(self.raw_model.config, self.cfg.T, tok_per_sec, self.peak_flops)
        done, to_do = self.step + 1 - self.start_step, self.cfg.max_steps - self.step - 1
        left = datetime.timedelta(seconds=int((now - self.run_start) / done * to_do))
        line = f"step {self.step:4d} | loss {loss:.4f} | lr {lr:.2e} | norm {norm:.2f} | {dt * 1000:.0f} ms"
        self.rt.print(f"{line} | {tok_per_sec:,.0f} tok/s | {mfu:.0%} mfu | {left} left")
        self.log.write(self.step, train=loss, lr=lr, norm=norm, dt_ms=dt * 1000, tok_per_sec=tok_per_sec, mfu=mfu)

    # What follows happens between steps: it changes nothing that training depends on, nor counts as its time.

    def evaluate(self, last):
        """What is due of validation, HellaSwag and samples. A request to stop cuts it short; a resume does it again."""
        cfg, step = self.cfg, self.step
        if last or step == 0 or due(step, cfg.val_interval):
            self.validate()
        if self.stopping:
            return
        if self.hellaswag and (last or due(step, cfg.hellaswag_interval)):
            self.score_hellaswag()
        if self.tokenizer and cfg.sample_interval and step and (last or due(step, cfg.sample_interval)):
            self.sample()

    @torch.no_grad()
    def validate(self):
        """Mean loss over the first val_tokens of the validation split: the same tokens each time."""
        cfg, rt = self.cfg, self.rt
        self.raw_model.eval()
        batches = validation_batches(self.val_windows, cfg.B, cfg.val_tokens, rt.rank, rt.world_size)
        sums = []
        for x, y in tqdm(batches, "validation", disable=not rt.master, leave=False, delay=2, unit=" batches"):
            if self.stop.requested and cfg.shard != parallel.FULL:  # whose ranks must all go on, or all not
                break
            with rt.autocast():
                losses = self.eval_model(rt.to_device(x), rt.to_device(y), reduction="none")
            sums.append(torch.stack((losses.sum(), (y != IGNORE).sum().to(losses))))
        self.raw_model.train()
        device = rt.device if rt.device.type == "cuda" else "cpu"  # mps has no float64
        totals = torch.tensor([0.0, 0.0, self.stop.requested], dtype=torch.float64, device=device)
        for part in sums:
            totals[:2] += part.to(totals)
        loss, count, stop = rt.sum(totals).tolist()
        self.stopping = stop > 0
        if self.stopping:
            return
        self.val_loss, self.val_step = loss / count, self.step
        rt.print(f"validation loss: {self.val_loss:.4f}")
        if rt.master:
            self.log.write(self.step, val=self.val_loss)
            if self.step:
                self.try_to_write(Path(cfg.log_dir) / "plot.png", functools.partial(plot_runs, [cfg.log_dir]))
        self.restart_clock()

    def score_hellaswag(self):
        model = parallel.whole_model(self.raw_model, self.rt)
        _, correct, total = hellaswag.evaluate(model, self.hellaswag, self.rt)
        self.rt.print(f"HellaSwag acc_norm: {correct}/{total}={correct / total:.4f}")
        if self.rt.master:
            self.log.write(self.step, hella=correct / total)
        self.restart_clock()

    def sample(self):
        """Print some of the model's words, drawn from a generator of their own."""
        cfg = self.cfg
        model = parallel.whole_model(self.raw_model, self.rt)
        if self.rt.master:
            sizes = {"num_samples": cfg.num_samples, "max_new_tokens": cfg.sample_tokens}
            texts = sample_texts(model, self.tokenizer, self.rt, cfg.sample_prompt, seed=cfg.seed, **sizes)
            for number, text in enumerate(texts, 1):
                self.rt.print(f"[Sample {number}] {text}")
        self.restart_clock()

    def save(self):
        """Write a checkpoint; then those go that are neither among the last few nor the best."""
        if self.val_step == self.step and (self.best is None or self.val_loss < self.best[0]):
            self.best = (self.val_loss, self.step)
        state = self.state_dict()
        if not self.rt.from_master(lambda: self.write_checkpoint(state)) and self.cfg.on_checkpoint_error == "stop":
            raise UserError(
                f"stopped at step {self.step}, whose checkpoint could not be written: free space, then --resume"
            )
        self.restart_clock()

    def write_checkpoint(self, state):
        path = checkpoint.path_of(self.cfg.log_dir, self.step)
        written = self.try_to_write(path, lambda path: checkpoint.save(path, state))
        if written:
            checkpoint.prune(self.cfg.log_dir, self.cfg.keep_last, self.best and self.best[1])
        return written

    def try_to_write(self, path, write):
        """Whether `write(path)` went well: a full disk ends no run, and what was written before stays as it was."""
        try:
            write(path)
        except OSError as error:
            self.rt.print(f"warning: {path} could not be written ({error.strerror}); earlier files are as they were")
            return False
        return True

    def restart_clock(self):
        """The next step's time begins now, on every rank."""
        self.rt.barrier()
        self.rt.synchronize()
        self.clock = time.perf_counter()

    def state_dict(self):
        """All that a resumed run needs: tensors and plain values only. Where ranks share it, all must take part."""
        return {
            "model": parallel.model_state(self.raw_model, self.rt.master),
            "model_config": dataclasses.asdict(self.raw_model.config),
            "tokenizer": self.tokenizer_name,
            "train_config": dataclasses.asdict(self.cfg),
            "step": self.step,
            "val_loss": self.val_loss,
            "val_step": self.val_step,
            "best": self.best,
            "optimizer": self.optimizers.state_dict(self.rt.master),
            "scaler": self.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "rng": {"seed": self.cfg.seed},  # every draw is a function of seed, step and rank: Runtime.seed_step
            "bad_steps": self.bad_steps,
            "skipped": self.skipped,
            "outliers": [outliers.state_dict() for outliers in self.outliers],
            "train_windows": len(self.loader.windows),
        }

    def load_state_dict(self, state):
        """All but the model, which `build_model` has already filled."""
        self.optimizers.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.loader.load_state_dict(state["loader"])
        for outliers, saved in zip(self.outliers, state["outliers"], strict=True):
            outliers.load_state_dict(saved)
        for name in ("step", "val_loss", "val_step", "best", "bad_steps", "skipped"):
            setattr(self, name, state[name])


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


if __name__ == "__main__":
    main()
