"""Checkpoints of a run: their content, which one is the best, and which are kept."""

import dataclasses
import os

from formats import checkpoint
from formats.model_file import check_shape_fits, check_tensors, checked_shape, without_head, without_padding
from system.boundary import foreign, require_fields
from system.errors import UserError
from system.words import listing
from tracking.runlog import path_of, plot_path
from training import parallel

NUMBER_OR_NONE = (int, float, type(None))
CONTENT = {  # the types of what `checkpoint_content` returns and a resumed run needs
    "model": dict,
    "model_config": dict,
    "tokenizer": str,
    "train_config": dict,
    "optimizer": list,
    "scaler": dict,
    "loader": dict,
    "train_windows": int,
    "step": int,
    "val_loss": NUMBER_OR_NONE,
    "val_step": NUMBER_OR_NONE,
    "best": (tuple, list, type(None)),
    "bad_steps": int,
    "skipped": int,
    "outliers": list,
}


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
        run.good_steps.add(run.state.step)
        best_step = run.state.best[1] if run.state.best else None
        checkpoint.prune(run.cfg.log_dir, run.cfg.keep_last, best_step, run.good_steps)
    return written


def finish(run, stopped):
    """Print how the run ended. Raises `UserError` on the master if its checkpoint, log or plot is not complete."""
    log_dir = run.cfg.log_dir
    outcome = f"stopped on request after {run.state.step} steps" if stopped else "done"
    if run.log is not None and not run.log.is_complete():
        run.unwritten.add(path_of(log_dir))
    last = (checkpoint.path_of(log_dir, run.state.step), path_of(log_dir), plot_path(log_dir))
    missing = [str(path) for path in last if path in run.unwritten]
    if missing:
        raise UserError(
            f"{outcome}, but {', '.join(missing)} could not be written, see the warning above; --resume continues from"
            " the last checkpoint"
        )
    advice = ", continue with --resume" if stopped else ""
    exists = {"plot": plot_path(log_dir).exists(), "checkpoints": bool(checkpoint.list_checkpoints(log_dir))}
    held = ["the log", *[f"the {name}" for name, found in exists.items() if found]]
    run.rt.print(f"{outcome}{advice}: {log_dir} holds {listing(held)}")


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
        "data_digest": run.data_digest,
        **run.state.state_dict(),
    }


def check_content(content, path):
    """Return the content of the checkpoint at `path`. Raises `UserError` if a part that a resumed run needs is missing.

    A valid checksum does not say that this code wrote the file.
    """
    with foreign(path, "the checkpoint of a run"):
        require_fields(content, path, **CONTENT)
        require_fields(content["train_config"], f"{path}: train_config", T=int, seed=int, optimizer=str)
        shape = checked_shape(content["model_config"], path)
        check_shape_fits(shape, os.path.getsize(path), path)
        check_tensors(without_head(without_padding(content["model"], shape["vocab_size"]), path), shape, path)
    return content


def load_content(run, content):
    """Put everything of a checkpoint but the model's weights into `run`. Every rank must call it."""
    run.optimizers.load_state_dict(content["optimizer"])
    run.scaler.load_state_dict(content["scaler"])
    run.loader.load_state_dict(content["loader"])
    run.state.load_state_dict(content)
