"""Nodes that leave and join, and the Slurm script. A node is a torchrun agent; all run on this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, TINY, as_flags, write_corpus

from formats import checkpoint
from tracking.runlog import read_log

SETTINGS = TINY | {"max_steps": 10**6, "checkpoint_interval": 20, "resume": True}  # the test ends the run
QUICK = "last_call_timeout=1,join_timeout=30,keep_alive_interval=1,keep_alive_max_attempt=4"  # seconds, not minutes


class Cluster:
    """Nodes with a shared folder. All of them print to one file."""

    def __init__(self, folder):
        self.output, self.log_dir, self.position = folder / "output", folder / "log", 0
        self.flags = as_flags(SETTINGS | {"data_dir": write_corpus(folder / "data"), "log_dir": self.log_dir})
        self.nodes = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start_node(self, hosts_rendezvous=False):
        """Start a torchrun agent with one rank."""
        launcher = ["-m", "torch.distributed.run", "--nnodes=1:2", "--nproc_per_node=1", "--max_restarts=3"]
        launcher += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{self.port}", "--rdzv_id=test"]
        launcher += [f"--rdzv_conf=is_host={int(hosts_rendezvous)},{QUICK}", "--local_addr=127.0.0.1"]
        with open(self.output, "a", encoding="utf-8") as output:
            node = subprocess.Popen(
                [sys.executable, *launcher, str(ROOT / "train_gpt2.py"), *self.flags],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            )
        self.nodes.append(node)
        return node

    def lose(self, node):
        """Kill an agent and its workers without warning, as a power failure does."""
        ps = ["ps", "-o", "pid=", "--ppid", str(node.pid)]
        workers = subprocess.run(ps, capture_output=True, text=True, check=False).stdout.split()
        for pid in (node.pid, *map(int, workers)):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        node.wait()

    def wait_for(self, pattern, timeout=60):
        """Wait until `pattern` matches in the output after the previous match; returns the match."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            text = self.output.read_text(encoding="utf-8")
            match = re.compile(pattern, re.MULTILINE).search(text, self.position)
            if match:
                self.position = match.end()
                return match
            time.sleep(0.1)
        raise AssertionError(f"{pattern!r} was not printed in {timeout} s:\n{text[-4000:]}")


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path)
    yield cluster
    for node in cluster.nodes:
        if node.poll() is None:
            cluster.lose(node)


def test_nodes_may_leave_and_join_a_run(cluster):
    cluster.start_node(hosts_rendezvous=True)
    second = cluster.start_node()
    cluster.wait_for("device: cpu, 2 ranks")
    cluster.wait_for("^step +25 ")
    cluster.lose(second)
    resumed = int(cluster.wait_for(r"^resuming from .*model_(\d+).pt")[1])
    assert resumed >= 20
    cluster.wait_for("device: cpu, 1 rank,")
    cluster.wait_for(f"^step +{resumed + 10} ")
    cluster.start_node()
    stopped = int(cluster.wait_for(r"^stopped on request after (\d+) steps")[1])
    cluster.wait_for(f"^resuming from .*model_{stopped:05d}.pt")  # no step is repeated when a node joins
    cluster.wait_for("device: cpu, 2 ranks")
    cluster.wait_for(f"^step +{stopped + 10} ")
    steps = read_log(cluster.log_dir)["train"].steps
    np.testing.assert_array_equal(steps, np.arange(len(steps)), "each step is logged once")


SLURM = {  # replacements of Slurm's commands for one machine
    "srun": 'echo $$ > step.pid; exec "$@"',
    "scancel": 'echo "scancel $*"; kill -TERM "$(cat step.pid)"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "scontrol $*"; fi',
}


def test_slurm_script_saves_and_requeues_before_the_time_limit(tmp_path, cluster):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in SLURM.items():
        (commands / name).write_text(f"#!/bin/sh\n{body}\n")
        (commands / name).chmod(0o755)
    (tmp_path / "train_gpt2.py").symlink_to(ROOT / "train_gpt2.py")  # the script runs from where it was submitted
    env = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "RANKS_PER_NODE": "1"}
    env |= {
        "PORT": str(cluster.port),
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with open(cluster.output, "w", encoding="utf-8") as output:
        job = subprocess.Popen(
            ["bash", str(ROOT / "scripts/slurm.sbatch"), *cluster.flags, "--checkpoint_interval=0"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
        )
    cluster.nodes.append(job)
    cluster.wait_for("^step +5 ")
    job.send_signal(signal.SIGUSR1)
    assert cluster.wait_for("^scancel (.*)")[1] == "--signal=TERM 7"
    stopped = int(cluster.wait_for(r"^stopped on request after (\d+) steps")[1])
    assert cluster.wait_for("^scontrol (.*)")[1] == "requeue 7"
    job.wait(30)
    assert max(checkpoint.list_checkpoints(cluster.log_dir)) == stopped
