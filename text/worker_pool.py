"""A pool of worker processes that returns results in the order of the work.

`concurrent.futures` and `multiprocessing.Pool` share one result pipe between all workers: if a worker is killed while
it writes a large result (Ctrl-C, out of memory), the reader blocks forever. Here each worker has its own pipe. The
pool sees a worker's death as the end of that pipe, and a worker exits when the main process dies (even by kill -9).
A file on which a parser aborts its process therefore ends one worker, and the error names that file.
"""

import itertools
import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait

from system.errors import NetworkError, UserError

MOST_PROCESSES = 1024
QUEUED_PER_WORKER = 3  # pieces sent ahead to each worker, so that it never idles


@dataclass
class Task:
    item: object
    done: bool = False
    error: Exception | None = None
    result: object = None


def map_in_order(function, items, workers, should_retry=None):
    """Yield (item, function(item.piece)) in the order of `items`, computed by `workers` processes (0: in this one).

    Only a few pieces per worker are in flight, so memory does not grow with the corpus. When `function` raises, the
    failed pieces are sent again if `should_retry(error)` (which may sleep) returns true; otherwise the error is raised.
    """
    if workers == 0:
        for item in items:
            yield item, function(item.piece)
        return
    items, pending = iter(items), deque()
    with WorkerPool(function, workers) as pool:
        while True:
            for item in itertools.islice(items, QUEUED_PER_WORKER * workers - len(pending)):
                pending.append(pool.submit(Task(item)))
            if not pending:
                return
            task = pool.wait_for(pending[0])
            if task.error is None:
                yield pending.popleft().item, task.result
            elif should_retry is not None and should_retry(task.error):
                for failed in [task for task in pending if task.error]:
                    pool.submit(failed)
            else:
                raise task.error


class WorkerPool:
    """A context manager that starts `count` workers and kills them at the end of the `with` block."""

    def __init__(self, function, count):
        self.function, self.count, self.workers = function, count, []

    def __enter__(self):
        try:
            for _ in range(self.count):
                self.workers.append(Worker(self.function))
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error):
        for worker in self.workers:
            worker.process.kill()  # its remaining results are not needed
        for worker in self.workers:
            worker.process.join()

    def submit(self, task):
        """Send a task to the worker with the shortest queue; returns the task."""
        task.done, task.error = False, None
        min(self.workers, key=lambda worker: len(worker.tasks)).send(task)
        return task

    def wait_for(self, task):
        """Receive results until `task` is done; returns it."""
        while not task.done:
            for worker in wait([worker for worker in self.workers if worker.tasks]):
                worker.receive()
        return task


class Worker:
    """The main process's side of a worker: the process, its pipe, and the tasks sent to it."""

    def __init__(self, function):
        spawn = multiprocessing.get_context("spawn")  # the only start method that works alike on every platform
        self.connection, worker_end = spawn.Pipe()
        self.begun = spawn.Value("q", 0, lock=False)  # shared: the number of pieces that the worker has begun
        self.process = spawn.Process(target=run_worker, args=(worker_end, function, self.begun), daemon=True)
        self.tasks, self.received = deque(), 0
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: only the main process handles Ctrl-C
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        worker_end.close()

    def fileno(self):
        """File descriptor of the pipe, which `multiprocessing.connection.wait` needs."""
        return self.connection.fileno()

    def send(self, task):
        self.tasks.append(task)
        try:
            self.connection.send(task.item.piece)
        except OSError as error:
            raise self.died() from error

    def receive(self):
        """Receive one result; results come in the order in which the tasks were sent."""
        try:
            error, result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self.died() from error
        task = self.tasks.popleft()
        self.received += 1
        task.done, task.error, task.result = True, error, result

    def died(self):
        """The `UserError` for a worker that has ended, which names the piece that it was working on."""
        self.process.join(5)
        current = self.begun.value - self.received - 1  # its finished results may not have arrived
        place = str(self.tasks[min(max(current, 0), len(self.tasks) - 1)].item.piece)
        code = self.process.exitcode
        if code == -9:  # SIGKILL, which Windows does not have
            return UserError(
                f"a worker process was killed (out of memory?) while reading {place}; lower --num_proc and run the same"
                " command again"
            )
        return UserError(
            f"a worker process crashed while reading {place} ({describe_exit(code)}): the file is probably damaged;"
            " download it again, or leave it out"
        )


def describe_exit(code):
    """The exit code of a process in words: the signal that ended it, if any."""
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def run_worker(connection, function, begun):
    """Main function of a worker process. Two threads receive and send, so that neither process blocks the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pieces, results = queue.Queue(), queue.Queue(maxsize=QUEUED_PER_WORKER)
    threading.Thread(target=receive_pieces, args=(connection, pieces), daemon=True).start()
    threading.Thread(target=send_results, args=(connection, results), daemon=True).start()
    while True:
        piece = pieces.get()
        begun.value += 1
        try:
            results.put((None, function(piece)))
        except (UserError, NetworkError) as error:  # these can be pickled
            results.put((error, None))
        except Exception:  # whatever else fails is reported to the main process with its traceback
            results.put((RuntimeError(traceback.format_exc()), None))


def receive_pieces(connection, pieces):
    while True:
        try:
            pieces.put(connection.recv())
        except (EOFError, OSError):  # the main process has ended
            os._exit(1)


def send_results(connection, results):
    while True:
        try:
            connection.send(results.get())
        except OSError:  # the main process has ended
            os._exit(1)


def cpu_count():
    """The number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
