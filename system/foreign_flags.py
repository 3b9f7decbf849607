"""The flags of nanoGPT, build-nanogpt and llm.c, and the settings that do the same here.

A flag of this table gets its own hint when it is used. docs/coming_from.md lists the same flags; a test compares them.
"""

from typing import NamedTuple


class ForeignFlag(NamedTuple):
    """A flag of another program."""

    program: str
    flag: str  # as typed there; `--flag=value` for a single value of a flag that exists here
    setting: str  # what does the same here
    note: str = ""  # how its values differ


FOREIGN_FLAGS = (
    ForeignFlag("llm.c", "-i", "data_dir", "a folder, not a pattern"),
    ForeignFlag("llm.c", "-o", "log_dir"),
    ForeignFlag("llm.c", "-b", "B"),
    ForeignFlag("llm.c", "-t", "T"),
    ForeignFlag("llm.c", "-d", "total_batch_size"),
    ForeignFlag("llm.c", "-l", "max_lr"),
    ForeignFlag("llm.c", "-k", "schedule"),
    ForeignFlag("llm.c", "-q", "min_lr", "a rate, not a fraction"),
    ForeignFlag("llm.c", "-u", "warmup_steps"),
    ForeignFlag("llm.c", "-x", "max_steps"),
    ForeignFlag("llm.c", "-c", "weight_decay"),
    ForeignFlag("llm.c", "-v", "val_interval"),
    ForeignFlag("llm.c", "-m", "val_tokens", "tokens, not batches"),
    ForeignFlag("llm.c", "-s", "sample_interval"),
    ForeignFlag("llm.c", "-g", "sample_tokens"),
    ForeignFlag("llm.c", "-n", "checkpoint_interval"),
    ForeignFlag("llm.c", "-y", "resume"),
    ForeignFlag("llm.c", "-r", "activation_checkpointing"),
    ForeignFlag("llm.c", "-a", "overfit_batch"),
    ForeignFlag("llm.c", "-h", "hellaswag_interval"),
    ForeignFlag("llm.c", "-z", "shard"),
    ForeignFlag("llm.c", "-sl", "skip_loss_zscore"),
    ForeignFlag("llm.c", "-sg", "skip_norm_zscore"),
    ForeignFlag("llm.c", "-e", "init_from"),
    ForeignFlag("nanoGPT", "--init_from=resume", "resume"),
    ForeignFlag("nanoGPT", "--init_from", "model"),
    ForeignFlag("nanoGPT", "--start", "prompt"),
    ForeignFlag("nanoGPT", "--out_dir", "log_dir"),
    ForeignFlag("nanoGPT", "--out_dir", "model"),
    ForeignFlag("nanoGPT", "--dataset", "data_dir"),
    ForeignFlag("nanoGPT", "--batch_size", "B"),
    ForeignFlag("nanoGPT", "--gradient_accumulation_steps", "total_batch_size", "in tokens"),
    ForeignFlag("nanoGPT", "--eval_interval", "val_interval"),
    ForeignFlag("nanoGPT", "--eval_iters", "val_tokens", "in tokens"),
    ForeignFlag("nanoGPT", "--max_iters", "max_steps"),
    ForeignFlag("nanoGPT", "--lr_decay_iters", "decay_steps", "without the warm-up"),
    ForeignFlag("nanoGPT", "--learning_rate", "max_lr"),
    ForeignFlag("nanoGPT", "--warmup_iters", "warmup_steps"),
    ForeignFlag("nanoGPT", "--wandb_log", "wandb"),
    ForeignFlag("build-nanogpt", "-m", "model"),
    ForeignFlag("build-nanogpt", "--model_type", "model"),
    ForeignFlag("build-nanogpt", "-d", "device"),
)


def foreign_hint(flag, settings):
    """Return what `flag` is called here if it is another program's flag for one of `settings` (names), else None.

    Where two programs give a flag two meanings, the settings decide: of those of -d, `hellaswag.py` has only `device`;
    training has both, and the first row counts.
    """
    for row in FOREIGN_FLAGS:
        if row.flag == flag and row.setting in settings:
            note = f" ({row.note})" if row.note else ""
            return f"{row.program}'s {row.flag} is --{row.setting} here{note}"
    return None
