"""Run Python scripts in processes that have torch imported already: a server forks each, and no import is repeated.

    server = ForkServer.in_new_interpreter()
    process = server.start([sys.executable, script, *args], stdout=subprocess.PIPE)

Such a process has its own id, environment, folder, standard streams, signal handlers and exit code, and has imported no
module of this repository. It differs from a new interpreter in what is decided before a script begins: options other
than -u, variables that Python or a library reads at its start, the hash seed, and the resource limits of its starter.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time

PIPE, STDOUT = subprocess.PIPE, subprocess.STDOUT
LIBRARIES = (  # what training imports. None of them starts a thread, which would be missing after a fork
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "safetensors.torch",
    "matplotlib.figure",
    "tqdm",
    "tyro",
)
CODE = struct.Struct("i")  # a process id or an exit code


class ForkServer:
    """The client's end of a server, which ends with it."""

    def __init__(self, client):
        self.client = client
        self.environment = dict(os.environ)  # what the libraries have read

    @classmethod
    def in_new_interpreter(cls):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()])
        theirs.close()
        return cls(ours)

    @classmethod
    def forked(cls):
        """A server with the libraries of this process, which must not have started a thread."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            run(serve(theirs))
            sys.exit()
        theirs.close()
        return cls(ours)

    def start(self, args, cwd=None, env=None, stdin=None, stdout=None, stderr=None, start_new_session=False):
        """Start `[sys.executable, script, ...]`; returns a `ForkedProcess`. The parameters are those of `Popen`."""
        streams = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
        request = {"args": list(map(str, args[1:])), "cwd": str(cwd or os.getcwd()), "new_session": start_new_session}
        return ForkedProcess(self.client, request | {"env": dict(os.environ if env is None else env)}, streams)


class ForkedProcess:
    """Has what the tests use of `subprocess.Popen` in text mode."""

    def __init__(self, client, request, streams):
        self.args, self.returncode = request["args"], None
        self.stdin = self.stdout = self.stderr = None
        theirs = []  # file descriptors 0, 1, 2 of the process
        for number, (name, stream) in enumerate(streams.items()):
            if stream == PIPE:
                reader, writer = os.pipe()
                setattr(self, name, open(writer, "w") if number == 0 else open(reader))
                theirs.append(reader if number == 0 else writer)
            elif stream == STDOUT:
                theirs.append(os.dup(theirs[1]))
            else:
                theirs.append(os.dup(number if stream is None else stream.fileno()))
        self.connection, keeper = socket.socketpair()
        socket.send_fds(client, [b"fork"], [*theirs, keeper.fileno()])
        keeper.close()
        for fd in theirs:
            os.close(fd)
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self.receive()

    def receive(self):
        return CODE.unpack(self.connection.recv(CODE.size, socket.MSG_WAITALL))[0]

    def wait(self, timeout=None):
        if self.returncode is None:
            self.connection.settimeout(timeout)
            try:
                self.returncode = self.receive()
            except (TimeoutError, BlockingIOError):  # the second where the timeout is 0
                raise subprocess.TimeoutExpired(self.args, timeout) from None
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, input=None, timeout=None):
        """Write `input` (at most what a pipe holds), and read both pipes to their ends. Returns (stdout, stderr)."""
        if self.stdin:
            with self.stdin:
                self.stdin.write(input or "")
        end = None if timeout is None else time.monotonic() + timeout
        read = {stream: b"" for stream in (self.stdout, self.stderr) if stream}
        with selectors.DefaultSelector() as selector:
            for stream in read:
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                ready = selector.select(None if end is None else end - time.monotonic())
                if not ready:
                    raise subprocess.TimeoutExpired(self.args, timeout)
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    read[key.fileobj] += data
                    if not data:
                        selector.unregister(key.fileobj)
        self.wait(None if end is None else max(end - time.monotonic(), 0))
        texts = {stream: io.TextIOWrapper(io.BytesIO(data)).read() for stream, data in read.items()}
        for stream in read:
            stream.close()
        return texts.get(self.stdout), texts.get(self.stderr)


# ---- in the server ----


def serve(requests):
    """Answer requests until the client has ended, then exit. Returns only in the forked processes: with the request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C for the tests ends their process and so this one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    while True:
        message, fds, _, _ = socket.recv_fds(requests, 16, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return keep(fds[:3], socket.socket(fileno=fds[3]))
        for fd in fds:
            os.close(fd)


def keep(streams, connection):
    """Fork the process, send its id and later its exit code, and exit. Returns only in that process: its request."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        return request | {"streams": streams}
    for fd in streams:
        os.close(fd)
    with contextlib.suppress(OSError):  # the client has ended
        connection.sendall(CODE.pack(pid))
        connection.sendall(CODE.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def run(request):
    """Make this process the one that was asked for, and run its script."""
    if request["new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    option = request["args"][0] if request["args"][0] in ("-u", "-m") else None
    sys.argv = request["args"][option is not None :]
    for number, fd in enumerate(request["streams"]):
        os.dup2(fd, number)
        os.close(fd)
    unbuffered = option == "-u" or sys.stdout.write_through
    sys.stdin = sys.__stdin__ = open(
        0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, newline="\n", closefd=False
    )
    sys.stdout = sys.__stdout__ = reopen(sys.stdout, 1, unbuffered)
    sys.stderr = sys.__stderr__ = reopen(sys.stderr, 2, unbuffered)
    sys.modules.pop("__mp_main__", None)  # this file
    if option == "-m":
        sys.path[0] = os.getcwd()
        subprocess_handler.Popen = ForkServer.forked().start  # torchrun starts its ranks with it
        sys.modules.pop(sys.argv[0])  # as in a new interpreter
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


def reopen(stream, fd, unbuffered):
    """Open stdout or stderr as the interpreter does when it starts."""
    binary = open(fd, "wb", buffering=0 if unbuffered else -1, closefd=False)
    by_line = not unbuffered and (fd == 2 or binary.isatty())
    return io.TextIOWrapper(binary, stream.encoding, stream.errors, "\n", by_line, write_through=unbuffered)


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    for name in LIBRARIES:
        importlib.import_module(name)
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    gc.freeze()  # the garbage collector of a forked process leaves the libraries' pages shared
    run(serve(connection))
