"""Describe the environment of a run, to reproduce it later: versions, hardware, commit of the code, command."""

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from system.runtime import cpu_name

PACKAGES = ("torch", "numpy", "tiktoken", "tyro")


def describe_environment(rt):
    """Return the environment of this process as plain values for `config.json`. `rt` is the `Runtime`."""
    cuda = rt.device.type == "cuda"
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda if cuda else None,
        "platform": platform.platform(),
        "host": platform.node(),
        "device": torch.cuda.get_device_name(rt.device) if cuda else rt.device.type,
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "dtype": rt.precision,
        "world_size": rt.world_size,
    }


def version(package):
    """Return the version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit():
    """Return the commit of this code, with "+changes" if tracked files differ from it, or None.

    None means that git is missing or that this code is not a checkout of its own, for example a copy inside another
    repository, whose commit would say nothing about it.
    """
    folder = Path(__file__).resolve().parent.parent
    try:
        checkout = git(folder, "rev-parse", "--show-toplevel")
        if Path(checkout).resolve() != folder:
            return None
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
        return git(folder, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        return None


def git(folder, *args):
    """Run a git command in `folder` and return its output."""
    done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
