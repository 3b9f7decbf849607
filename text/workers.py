"""Worker processes whose results come in the order of the work.

`concurrent.futures` and `multiprocessing.Pool` share one pipe between all workers: where one is killed while it writes
a large result (Ctrl-C, out of memory), the reader waits for the rest for ever. Here each worker has a pipe of its own,
so that its end is noticed, and so is ours by the worker (kill -9): no process is left behind.
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

from system.errors import UserError

AHEAD = 3  # pieces a worker has been given, so that it never waits for us


@dataclass
class Task:
    item: object
    done: bool = False
    error: Exception | None = None
    result: object = None


def in_order(function, items, workers, again=None):
    """Yield (item, function(item.piece)) in the order of `items`, from `workers` processes (0: this one).

    Only a few pieces a worker are under way, so memory doesn't grow with the corpus. Where `function` raises and
    `again(error)` (which may wait) is true, the pieces that failed are given out anew.
    """
    if workers == 0:
        for item in items:
            yield item, function(item.piece)
        return
    items, waiting = iter(items), deque()
    with Crew(function, workers) as crew:
        while True:
            for item in itertools.islice(items, AHEAD * workers - len(waiting)):
                waiting.append(crew.give(Task(item)))
            if not waiting:
                return
            task = crew.wait_for(waiting[0])
            if task.error is None:
                yield waiting.popleft().item, task.result
            elif again is not None and again(task.error):
                for failed in [task for task in waiting if task.error]:
                    crew.give(failed)
            else:
                raise task.error


class Crew:
    """Workers, for as long as a `with` block runs."""

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
            worker.process.kill()  # what it still works on, nobody will read
        for worker in self.workers:
            worker.process.join()

    def give(self, task):
        """Hand a task to the least busy worker."""
        task.done, task.error = False, None
        min(self.workers, key=lambda worker: len(worker.tasks)).give(task)
        return task

    def wait_for(self, task):
        while not task.done:
            for worker in wait([worker for worker in self.workers if worker.tasks]):
                worker.take()
        return task


class Worker:
    """A process and what it has been given to do."""

    def __init__(self, function):
        spawn = multiprocessing.get_context("spawn")  # the only way that is the same on Linux, macOS and Windows
        self.connection, theirs = spawn.Pipe()
        self.process = spawn.Process(target=work, args=(theirs, function), daemon=True)
        self.tasks = deque()
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is ours to answer
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, handler)
        theirs.close()

    def fileno(self):
        """For `wait`."""
        return self.connection.fileno()

    def give(self, task):
        try:
            self.connection.send(task.item.piece)
        except OSError as error:
            raise killed() from error
        self.tasks.append(task)

    def take(self):
        try:
            error, result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise killed() from error
        task = self.tasks.popleft()
        task.done, task.error, task.result = True, error, result


def killed():
    return UserError("a worker process was killed (out of memory?); lower --num_proc and run the same command again")


def work(connection, function):
    """A worker's life: it receives and sends beside its work, so that neither side ever waits for the other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pieces, results = queue.Queue(), queue.Queue(maxsize=AHEAD)
    threading.Thread(target=receive, args=(connection, pieces), daemon=True).start()
    threading.Thread(target=send, args=(connection, results), daemon=True).start()
    while True:
        piece = pieces.get()
        try:
            results.put((None, function(piece)))
        except Exception as error:
            known = isinstance(error, UserError) or hasattr(error, "retry_after")  # those travel between processes
            results.put((error if known else RuntimeError(traceback.format_exc()), None))


def receive(connection, pieces):
    while True:
        try:
            pieces.put(connection.recv())
        except (EOFError, OSError):  # the main process is gone
            os._exit(1)


def send(connection, results):
    while True:
        try:
            connection.send(results.get())
        except OSError:
            os._exit(1)


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
