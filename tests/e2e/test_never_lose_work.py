"""Stop, kill and freeze real training processes, and fill their disk: what they leave can be resumed."""

import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import time
from subprocess import PIPE, STDOUT

import pytest
import torch
from helpers import MEASURED, ROOT, TINY, as_flags, run_script, start_python, torchrun, write_corpus

from formats import checkpoint
from tracking.runlog import read_log
from training.parallel import SHARD_MODES

SETTINGS = TINY | {"max_steps": 40, "checkpoint_interval": 5, "val_interval": 10, "keep_last": 2, "dropout": 0.1}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(corpus, weights, log) of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    corpus = write_corpus(folder / "data")
    done = run_script("train_gpt2.py", *as_flags(SETTINGS | {"data_dir": corpus, "log_dir": folder / "log"}))
    assert done.returncode == 0, done.stderr
    return corpus, weights(folder / "log"), log_without_times(folder / "log")


def weights(log_dir):
    return checkpoint.load(log_dir / "model_00040.pt")["model"]


def log_without_times(log_dir):
    lines = (log_dir / "log.txt").read_text().splitlines()
    return [line for line in lines if line.split()[1] not in MEASURED]


def assert_same_end(log_dir, uninterrupted):
    for name, weight in uninterrupted[1].items():
        assert torch.equal(weights(log_dir)[name], weight), name
    assert log_without_times(log_dir) == uninterrupted[2]


def start(log_dir, corpus, *extra, launcher=(), settings=SETTINGS, env=None):
    """Start a run in its own process group, with --resume; with a `launcher`, all of it in new interpreters."""
    flags = as_flags(settings | {"data_dir": corpus, "log_dir": log_dir, "resume": True})
    words, streams = [*launcher, ROOT / "train_gpt2.py", *flags, *extra], {"stdout": PIPE, "stderr": STDOUT}
    return start_python(*words, env=env, fresh=bool(launcher), start_new_session=True, **streams)


def wait_for(process, pattern, lines=None):
    """Read a run's output until a line matches `pattern`; returns the lines so far, added to `lines`."""
    lines = [] if lines is None else lines
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return lines
    raise AssertionError(f"ended without {pattern!r}:\n{''.join(lines)}")


def test_resume_after_kill_is_bit_identical(uninterrupted, tmp_path):
    moments = random.Random(7)
    for _ in range(2):
        process = start(tmp_path / "log", uninterrupted[0])
        wait_for(process, r"^step +\d+ ")  # the first step of this start
        for _ in range(moments.randrange(12)):
            process.stdout.readline()
        process.kill()
        process.wait()
    process = start(tmp_path / "log", uninterrupted[0])
    wait_for(process, "^validation loss")
    while process.poll() is None and not list((tmp_path / "log").glob(".model_*.tmp")):
        pass  # kill it while it writes a checkpoint
    process.kill()
    process.wait()
    process = start(tmp_path / "log", uninterrupted[0])
    assert process.wait(60) == 0
    assert_same_end(tmp_path / "log", uninterrupted)


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_resume_after_kill_on_a_gpu_is_bit_identical(tmp_path, compiled):
    """With --deterministic, in bfloat16; killed twice."""
    settings = SETTINGS | {"device": "cuda", "dtype": "bfloat16", "deterministic": True, "compile": compiled}
    corpus, ends = write_corpus(tmp_path / "data"), []
    for name, kill_at in (("uninterrupted", ()), ("killed", (7, 19))):
        for step in kill_at:
            process = start(tmp_path / name, corpus, settings=settings)
            wait_for(process, rf"^step +{step} ")
            process.kill()
            process.wait()
        process = start(tmp_path / name, corpus, settings=settings)
        output = process.stdout.read()
        assert process.wait(60) == 0, output
        ends.append((corpus, weights(tmp_path / name), log_without_times(tmp_path / name)))
    assert "resuming from" in output
    assert_same_end(tmp_path / "killed", ends[0])


def test_signals_finish_the_step_save_and_exit_0(uninterrupted, tmp_path):
    """Stop one run by each signal in turn. Then the resumed run is bit-identical to an uninterrupted one."""
    for number, step in ((signal.SIGTERM, 7), (signal.SIGUSR1, 15), (signal.SIGINT, 23)):
        process = start(tmp_path / "log", uninterrupted[0])
        lines = wait_for(process, rf"^step +{step} ")
        process.send_signal(number)
        output = "".join(lines) + process.stdout.read()
        assert process.wait(30) == 0, output
        assert f"{number.name}: finishing this step" in output
        stopped_after = int(re.search(r"stopped on request after (\d+) steps", output)[1])
        assert max(checkpoint.list_checkpoints(tmp_path / "log")) == stopped_after
        assert read_log(tmp_path / "log")["train"].steps[-1] == stopped_after - 1
    assert start(tmp_path / "log", uninterrupted[0]).wait(60) == 0
    assert_same_end(tmp_path / "log", uninterrupted)


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="the size of a pipe is set on Linux only")
def test_signal_while_nothing_reads_stdout_saves_and_exits_0(tmp_path):
    """As in a paused pager. The pipe is full after a few steps."""
    corpus, log = write_corpus(tmp_path / "data"), tmp_path / "log" / "log.txt"
    process = start(tmp_path / "log", corpus, settings=SETTINGS | {"max_steps": 10**6, "checkpoint_interval": 0})
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
    wait_until(lambda: log.exists() and " output_lost " in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert max(checkpoint.list_checkpoints(tmp_path / "log")) == read_log(log)["train"].steps[-1] + 1


def wait_until(condition, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_second_ctrl_c_stops_at_once(uninterrupted, tmp_path):
    slow = SETTINGS | {"total_batch_size": 1024 * 32, "max_steps": 100, "checkpoint_interval": 1}
    process = start(tmp_path / "log", uninterrupted[0], settings=slow)
    lines = wait_for(process, r"^step +1 ")
    process.send_signal(signal.SIGINT)
    wait_for(process, "SIGINT: finishing this step", lines)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130, "".join(lines)
    assert checkpoint.newest_good(tmp_path / "log", print) is not None


def test_torchrun_restart_after_a_killed_rank_is_bit_identical(tmp_path):
    settings = SETTINGS | {"data_dir": write_corpus(tmp_path / "data")}
    done = torchrun(2, "train_gpt2.py", *as_flags(settings | {"log_dir": tmp_path / "uninterrupted"}))
    assert done.returncode == 0, done.stderr
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    process = start(tmp_path / "killed", settings["data_dir"], launcher=launcher)
    lines = wait_for(process, r"^step +17 ")
    os.kill(worker_pids(process.pid)[1], signal.SIGKILL)
    output = "".join(lines) + process.stdout.read()
    assert process.wait(60) == 0, output
    assert "resuming from" in output
    log_dir = tmp_path / "uninterrupted"
    assert_same_end(tmp_path / "killed", (settings["data_dir"], weights(log_dir), log_without_times(log_dir)))


def test_resume_is_bit_identical_on_three_ranks_in_each_shard_mode(tmp_path):
    """With more than two ranks the order of a sum matters, and DDP changes it after its first step."""
    done = torchrun(3, "tests/resume_on_ranks.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming from") == len(SHARD_MODES)
    for shard in SHARD_MODES:
        whole, resumed = (
            checkpoint.load(tmp_path / f"{shard}_{name}" / "model_00004.pt") for name in ("whole", "resumed")
        )
        for name, weight in whole["model"].items():
            assert torch.equal(resumed["model"][name], weight), (shard, name)
    assert max(checkpoint.list_checkpoints(tmp_path / "patience")) == 3, "all ranks stop after steps 2 and 3"
    assert "done, stopped after step 3 and 2 validations without improvement" in done.stdout


def worker_pids(agent):
    """The process ids of torchrun's workers, by rank."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent)], capture_output=True, text=True, check=True)
    return sorted(int(pid) for pid in children.stdout.split())


def test_sigterm_to_torchrun_stops_all_ranks_at_the_same_step(tmp_path):
    corpus = write_corpus(tmp_path / "data")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(tmp_path / "log", corpus, launcher=launcher)
    lines = wait_for(process, r"^step +7 ")
    process.send_signal(signal.SIGTERM)
    output = "".join(lines) + process.stdout.read()
    process.wait(40)
    stopped_after = int(re.search(r"stopped on request after (\d+) steps", output)[1])
    assert max(checkpoint.list_checkpoints(tmp_path / "log")) == stopped_after
    assert output.count("finishing this step") == 1


def test_frozen_rank_stops_the_others_with_a_message(tmp_path):
    corpus = write_corpus(tmp_path / "data")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(tmp_path / "log", corpus, "--dist_timeout=3", launcher=launcher)
    lines = wait_for(process, r"^step +3 ")
    frozen = worker_pids(process.pid)[1]
    os.kill(frozen, signal.SIGSTOP)
    wait_for(process, "error: rank 0 lost another rank", lines)  # after dist_timeout; gloo's own is 30 minutes
    os.kill(frozen, signal.SIGKILL)  # torchrun would do this after 30 s
    process.stdout.read()
    assert process.wait(60) != 0


def test_full_disk_keeps_earlier_checkpoints_and_the_run(tmp_path):
    """Log and checkpoints go to a file system of 1 MB, mounted in a separate mount namespace."""
    mount = 'mount -t tmpfs -o size=1m none "$0"'
    allowed = subprocess.run(["unshare", "-rm", "sh", "-c", mount, tmp_path], capture_output=True, check=False)
    if allowed.returncode:
        pytest.skip(f"unshare -rm may not mount here: {allowed.stderr.decode().strip()}")
    corpus = write_corpus(tmp_path / "data")
    (tmp_path / "small").mkdir()
    settings = TINY | {"data_dir": corpus, "log_dir": tmp_path / "small" / "log", "max_steps": 4}
    flags = as_flags(settings | {"checkpoint_interval": 1, "keep_last": 0, "log_interval": 0})
    check = f"from formats import checkpoint; print('good:', checkpoint.newest_good('{tmp_path}/small/log', print))"
    train = f"{sys.executable} train_gpt2.py {' '.join(flags)}"
    script = f'{mount.replace("$0", str(tmp_path / "small"))} && {train}; echo "exit $?"; {sys.executable} -c "{check}"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert "(No space left on device); earlier files are unchanged" in done.stdout, done.stdout + done.stderr
    assert "exit 2" in done.stdout, "the last checkpoint is missing"
    assert "model_00004.pt" in done.stderr.split("could not be written")[0], done.stderr
    assert "good: " in done.stdout
    assert "model_0000" in done.stdout.split("good: ")[1], done.stdout
    assert "Traceback" not in done.stderr
