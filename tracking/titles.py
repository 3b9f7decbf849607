"""The title of a figure: what a run is, or what several runs differ in."""

MOST = 4  # settings, and values of each, that a title lists

# Settings that do not change what a run computes.
NOT_COMPARED = {"log_dir", "resume", "overwrite", "dry_run", "profile", "tensorboard", "wandb", "log_interval", "watch"}
NOT_COMPARED |= {"keep_last", "on_checkpoint_error", "checkpoint_interval", "assumed_mfu", "price_per_hour"}


def figure_title(runs):
    """Return the title of the figure: what the runs are, and a warning if their losses do not compare."""
    warning = tokenizer_warning(runs)
    if warning and all("val_bpb" in run.log for run in runs):
        warning += "; bits per byte do"
    return describe_runs(runs) + warning


def describe_runs(runs):
    """Return a single run's settings, or what several runs differ in, as text for the title."""
    if len(runs) == 1:
        return runs[0].name + describe_run(runs[0].record)
    return f"{len(runs)} runs" + describe_differences([run.record.get("config", {}) for run in runs])


def tokenizer_warning(runs):
    """Return a line for the title if runs have different tokenizers, or ""."""
    tokenizers = sorted({run.record.get("data", {}).get("tokenizer") or "unknown" for run in runs})
    if len(tokenizers) == 1:
        return ""
    return f"\nwarning: tokenizers {', '.join(tokenizers)}: losses per token of different tokens do not compare"


def source_warning(runs):
    """Return a line for the title if runs have different data, or ""."""
    sources = sorted({run.record.get("data", {}).get("source") or "unknown" for run in runs})
    if len(sources) == 1:
        return ""
    return f"\nwarning: data from {', '.join(sources[:MOST])}: losses on different texts do not compare"


def describe_run(record):
    """Return a run's main settings as text for the title, or "" if they are unknown."""
    config, model = record.get("config", {}), record.get("model", {})
    parts = []
    if {"parameters", "n_layer", "n_embd"} <= model.keys():
        parts.append(f"{model['parameters'] / 1e6:,.1f}M parameters, {model['n_layer']} layers of {model['n_embd']}")
    if {"total_batch_size", "optimizer", "max_lr"} <= config.keys():
        parts.append(f"{config['total_batch_size']:,} tokens a step, {config['optimizer']} at {config['max_lr']:g}")
    return "".join(" · " + part for part in parts)


def describe_differences(configs):
    """Return the settings in which runs differ as text for the title: ` · max_lr 0.001, 0.003 · B 8, 16`, or ""."""
    names = [name for name in configs[0] if name not in NOT_COMPARED and all(name in config for config in configs)]
    parts = []
    for name in names:
        values = list(dict.fromkeys(str(config[name]) for config in configs))  # different ones, in the runs' order
        if len(values) > 1:
            parts.append(f" · {name} {', '.join(values)}" if len(values) <= MOST else f" · {name}")
    more = f" · {len(parts) - MOST} more settings" if len(parts) > MOST else ""
    return "".join(parts[:MOST]) + more
