"""Checkpoints of a run: their content, which one is the best, and which are kept."""

import dataclasses

from formats import checkpoint
from system.errors import UserError
from training import parallel


def save(run):
    """Write a checkpoint, then delete all but the newest `keep_last` and the best. Every rank must call it."""
    state, cfg = run.state, run.cfg
    if state.val_step == state.step and (state.best is None or state.val_loss < state.best[0]):
        state.best = (state.val_loss, state.step)
    content = checkpoint_content(run)
    written = run.rt.from_master(lambda: write_and_prune(run, content))
    if not written and cfg.on_checkpoint_error == "stop":
        raise UserError(
            f"stopped at step {state.step}: its checkpoint could not be written; free some space, then use --resume"
        )
    run.progress.restart()


def write_and_prune(run, content):
    path = checkpoint.path_of(run.cfg.log_dir, run.state.step)
    written = run.try_to_write(path, lambda path: checkpoint.save(path, content))
    if written:
        best_step = run.state.best[1] if run.state.best else None
        checkpoint.prune(run.cfg.log_dir, run.cfg.keep_last, best_step)
    return written


def checkpoint_content(run):
    """All that a resumed run needs, as tensors and plain values. Every rank must call it: some tensors are gathered."""
    return {
        "model": parallel.model_state(run.model, run.rt.master),
        "model_config": dataclasses.asdict(run.model.config),
        "tokenizer": run.tokenizer_name,
        "train_config": dataclasses.asdict(run.cfg),
        "optimizer": run.optimizers.state_dict(run.rt.master),
        "scaler": run.scaler.state_dict(),
        "loader": run.loader.state_dict(),
        "rng": {"seed": run.cfg.seed},  # every random draw is a function of seed, step and rank: Runtime.seed_step
        "train_windows": len(run.loader.windows),
        **run.state.state_dict(),
    }


def load_content(run, content):
    """Put everything of a checkpoint but the model's weights into `run`. Every rank must call it."""
    run.optimizers.load_state_dict(content["optimizer"])
    run.scaler.load_state_dict(content["scaler"])
    run.loader.load_state_dict(content["loader"])
    run.state.load_state_dict(content)
