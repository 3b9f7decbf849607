"""What a run ran on, so that it can be understood a year later: versions, hardware, the code's commit, the command."""

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
from training import costs

PACKAGES = ("torch", "numpy", "tiktoken", "tyro")


def describe_environment(rt):
    """Plain values for `config.json`. `rt` is the `Runtime`."""
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
        "dtype": costs.dtype_name(rt.dtype),
        "world_size": rt.world_size,
    }


def version(package):
    """A package's version, or None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit(folder=None):
    """The commit of the code in `folder` (by default this file's), with "+changes" if files differ from it, or None.

    A copy of the code inside some other repository is not that repository's commit.
    """
    folder = Path(folder or Path(__file__).parent.parent).resolve()
    folder = folder.parent if folder.is_file() else folder
    try:
        top = git(folder, "rev-parse", "--show-toplevel")
        if Path(top).resolve() != folder:
            return None
        changed = git(folder, "status", "--porcelain", "--untracked-files=no")
        return git(folder, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository
        return None


def git(folder, *args):
    done = subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()
