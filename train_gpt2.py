"""Train a GPT-2.

    python train_gpt2.py [config/FILE.py ...] [--key value ...]
    torchrun --standalone --nproc_per_node=8 train_gpt2.py [config/FILE.py ...] [--key value ...]

`main` reads the settings and sets the run up; `train` is the loop: validate, save, evaluate, then micro-steps, clip,
step, log. What the loop calls is in `training/`.
"""

import system.interrupt  # noqa: F401, I001 (first, see there)
import torch

from configurator import configure
from system import runtime
from system.errors import command
from system.signals import StopRequest
from training.config import TrainConfig, recorded_settings
from training.diagnosis import diagnose
from training.dry_run import print_plan
from training.evaluation import evaluate, validate
from training.failures import explain_failures
from training.parallel import clip_gradients, synchronize_gradients
from training.run_folder import own_folder
from training.saving import finish, save
from training.schedule import learning_rate
from training.setup import set_up


@command
def main(argv=None):
    cfg = configure(TrainConfig, argv, recall=recorded_settings)
    if cfg.dry_run:
        print_plan(cfg)
        return
    rt = runtime.start(cfg.device, cfg.dtype, cfg.seed, cfg.dist_timeout, cfg.deterministic)
    with explain_failures(cfg, rt), own_folder(cfg.log_dir, rt), StopRequest(rt.print) as stop_request:
        train(set_up(cfg, rt, stop_request))
    rt.close()


def train(run):
    """Train until `max_steps`, the end of patience or a stop request.

    At step s, the weights after s updates are evaluated and saved.
    """
    cfg, rt, state = run.cfg, run.rt, run.state
    stopping = False  # becomes true once all ranks have agreed to stop
    run.progress.start(state.step)
    while True:
        last = state.step >= cfg.max_steps

        # Between updates: this does not affect training and is not included in the step time.
        if not stopping:
            stopping = validate(run, last)  # a stop request interrupts a validation
        last = last or state.out_of_patience(cfg.patience)
        save(run, last, stopping)  # the checkpoints that are due
        if not stopping:
            evaluate(run, last)
        if last or stopping:
            break
        run.profiler.start(state.step)

        # Forward and backward: the gradient of the mean loss over total_batch_size tokens, in micro-steps.
        lr = learning_rate(state.step, cfg)
        run.optimizers.set_lr(lr)
        rt.seed_step(cfg.seed, state.step)  # for dropout
        if cfg.overfit_batch:
            run.loader.position = 0
        mean_loss = torch.zeros((), device=rt.device)
        for micro_step, (x, y, divisor) in enumerate(run.loader.next_step(), 1):  # x, y (B, T)
            # The ranks average their gradients once per update, in the last backward pass.
            synchronize_gradients(run.train_model, last_micro_step=micro_step == run.loader.grad_accum_steps)
            with rt.autocast():
                loss = run.train_model(rt.to_device(x), rt.to_device(y)) / divisor
            run.scaler.scale(loss).backward()
            mean_loss += loss.detach()

        # Clip.
        run.optimizers.unscale(run.scaler)
        norm = clip_gradients(run.model, cfg.grad_clip)

        # All-reduce the loss and the stop flag together. The CPU waits for the device only here, in `tolist`.
        stop_flag = torch.full_like(mean_loss, run.stop_request.requested)
        mean_loss, stop_flag = rt.sum(torch.stack((mean_loss, stop_flag))) / rt.world_size
        loss, norm, stop_flag = torch.stack((mean_loss, norm, stop_flag)).tolist()
        stopping = stop_flag > 0

        # Apply the update if loss and gradient are finite and no outliers.
        if run.update_filter.accepts(state.step, loss, norm):
            with run.watch.update(state.step, norm):  # measures it, with --watch
                run.optimizers.step(run.scaler)
        else:
            diagnose(run, loss, norm)
            run.update_filter.check_bad_steps(state.step)
        run.scaler.update()
        run.optimizers.zero_grad()

        run.progress.report(state.step, loss, lr, norm)
        if run.profiler.stop(state.step):
            run.progress.restart()
        state.step += 1

    finish(run, stopping)


if __name__ == "__main__":
    main()
