"""Checkpoints of a run: their content, when they are written, and which are kept."""

import dataclasses
import functools
import os

from formats import checkpoint
from formats.model_file import check_shape_fits, check_tensors, checked_shape, without_head, without_padding
from system.boundary import foreign, require_fields
from system.errors import UserError
from system.files import link_or_copy
from system.words import listing
from tracking.runlog import path_of, plot_path
from training import parallel
from training.schedule import due
from training.state import LATER_SCALARS, TrainState

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
    "validations_since_best": int,
    "bad_steps": int,
    "skipped": int,
    "outliers": list,
}


def save(run, last, stopping):
    """Write the checkpoints that are due at this step: a numbered one, the best, or both. Every rank must call it."""
    cfg, state, paths = run.cfg, run.state, []
    if last or (state.step > run.start_step and (stopping or due(state.step, cfg.checkpoint_interval))):
        paths.append(checkpoint.path_of(cfg.log_dir, state.step))
    if state.best != run.saved_best:
        paths.append(checkpoint.best_path(cfg.log_dir))
        run.saved_best = state.best
    if not paths:
        return
    content = checkpoint_content(run)
    written = run.rt.from_master(lambda: write_and_prune(run, paths, content))
    if not written and cfg.on_checkpoint_error == "stop":
        raise UserError(
            f"stopped at step {state.step}: its checkpoint could not be written; free some space, then use --resume"
        )
    run.progress.restart()


def write_and_prune(run, paths, content):
    """Write `content` to each of `paths`, then delete old numbered checkpoints. Returns whether all were written."""
    written = []
    for path in paths:
        if run.try_to_write(path, functools.partial(write_once, content, written)):
            written.append(path)
    if checkpoint.path_of(run.cfg.log_dir, run.state.step) in written:
        run.good_steps.add(run.state.step)
        checkpoint.prune(run.cfg.log_dir, run.cfg.keep_last, run.good_steps)
    return written == paths


def write_once(content, written, path):
    """Write `content` to `path`; where it was just `written` to another path, `path` becomes a second name of that."""
    if written:
        link_or_copy(written[0], path)
    else:
        checkpoint.save(path, content)


def take_over(run, path):
    """After a resume from the checkpoint at `path`, which is verified: keep the best one apart from the numbered ones.

    An earlier version of this code, or a kill between the two writes of a step, left the best as a numbered one only.
    """
    log_dir, best = run.cfg.log_dir, run.state.best
    if path == checkpoint.path_of(log_dir, run.state.step):
        run.good_steps.add(run.state.step)
    if best is None:
        return
    numbered = checkpoint.path_of(log_dir, best[1])
    if best_step(log_dir) < best[1] and checkpoint.is_good(numbered):
        link_or_copy(numbered, checkpoint.best_path(log_dir))


def best_step(log_dir):
    """The step of a run's best checkpoint, or -1 if there is none that is undamaged."""
    try:
        return checkpoint.load(checkpoint.best_path(log_dir), mmap=True)["step"]
    except UserError:
        return -1


def finish(run, stopped):
    """Print how the run ended. Raises `UserError` on the master if its checkpoint, log or plot is not complete."""
    log_dir, state = run.cfg.log_dir, run.state
    outcome = describe_outcome(run, stopped)
    if run.log is not None and not run.log.is_complete():
        run.unwritten.add(path_of(log_dir))
    best = checkpoint.best_path(log_dir)
    last = (checkpoint.path_of(log_dir, state.step), best, path_of(log_dir), plot_path(log_dir))
    missing = [str(path) for path in last if path in run.unwritten]
    if missing:
        raise UserError(
            f"{outcome}, but {', '.join(missing)} could not be written, see the warning above; --resume continues from"
            " the last checkpoint"
        )
    if best.exists() and state.best is not None:
        run.rt.print(f"{describe_best(state)}: {best}")
    advice = ", continue with --resume" if stopped else ""
    exists = {"plot": plot_path(log_dir).exists(), "checkpoints": checkpoint.newest(log_dir) is not None}
    held = ["the log", *[f"the {name}" for name, found in exists.items() if found]]
    run.rt.print(f"{outcome}{advice}: {log_dir} holds {listing(held)}")


def describe_outcome(run, stopped):
    state = run.state
    if stopped:
        return f"stopped on request after {state.step} steps"
    if state.step < run.cfg.max_steps:
        count = state.validations_since_best
        return f"done, stopped after step {state.step} and {count} validations without improvement"
    return "done"


def describe_best(state):
    """The lowest validation loss, where it was, and by how much it is below the last one."""
    loss, step = state.best
    line = f"best validation loss: {loss:.4f} at step {step}"
    if state.val_step == step:
        return f"{line}, the last"
    return f"{line}, {state.val_loss - loss:.4f} below the last ({state.val_loss:.4f} at step {state.val_step})"


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
        "chat": run.chat,
        **run.state.state_dict(),
    }


def check_content(content, path):
    """Return the content of the checkpoint at `path`. Raises `UserError` if a part that a resumed run needs is missing.

    A valid checksum does not say that this code wrote the file.
    """
    with foreign(path, "the checkpoint of a run"):
        content = LATER_SCALARS | content
        require_fields(content, path, **CONTENT)
        require_fields(content["train_config"], f"{path}: train_config", T=int, seed=int, optimizer=str)
        shape = checked_shape(content["model_config"], path)
        check_shape_fits(shape, os.path.getsize(path), path)
        check_tensors(without_head(without_padding(content["model"], shape["vocab_size"]), path), shape, path)
    return content


def is_out_of_patience(content, patience):
    """Whether the run ended with this checkpoint because its validation loss did not improve."""
    state = TrainState()
    state.load_state_dict(content)
    return state.out_of_patience(patience)


def load_content(run, content):
    """Put everything of a checkpoint but the model's weights into `run`. Every rank must call it."""
    run.optimizers.load_state_dict(content["optimizer"])
    run.scaler.load_state_dict(content["scaler"])
    run.loader.load_state_dict(content["loader"])
    run.state.load_state_dict(content)
    run.saved_best = run.state.best
