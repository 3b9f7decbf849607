"""Downloads from a real local server that breaks off, continues and delivers the wrong file."""

import contextlib
import hashlib
import http.server
import os
import re
import socket
import threading
import time

import pytest

from system import download as download_module
from system.download import download, download_from_any, try_download
from system.errors import UserError

BODY = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()
NO_SERVER = "http://127.0.0.1:9/file"  # nothing listens on port 9


def answer_raw(first, then=(), pause=0.02):
    """A server on a free port that sends bytes as they are: `first`, then each of `then` after a pause. Its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(first)
            for data in then:
                time.sleep(pause)
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/file"


HEAD = b"HTTP/1.1 200 OK\r\n"
DRIP = [b"x"] * 500  # a byte each 20 ms


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        (b"garbage\r\n\r\n", (), "BadStatusLine"),
        (HEAD + b"X: " + b"x" * 70_000, (), "LineTooLong"),
        (HEAD + b"X: x\r\n" * 200 + b"\r\n", (), "HTTPException"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (), "IncompleteRead|invalid literal"),
        (HEAD + b"Content-Length: many\r\n\r\n", (), "invalid literal"),
        (HEAD + b"Content-Length: 9\r\n\r\nabc", (), "broke off"),
        (HEAD + b"Content-Length: 500\r\n\r\n", DRIP, "less than 2,000 bytes a second"),
        (HEAD, DRIP, "timed out|TimeoutError"),
        (HEAD + b"\r\n" + b"x" * 9_000, (), "more than 5,000 bytes"),
        (b"", (), "closed connection"),
    ],
)
def test_try_download_reports_any_answer_and_takes_limited_time_and_bytes(tmp_path, monkeypatch, first, then, reason):
    monkeypatch.setattr(download_module, "TIMEOUT", 0.2)
    monkeypatch.setattr(download_module, "LARGEST", 5_000)
    begin = time.monotonic()
    assert re.search(reason, str(try_download(answer_raw(first, then), tmp_path / "file", SHA256)))
    assert time.monotonic() - begin < 2
    assert not (tmp_path / "file").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are POSIX")
@pytest.mark.parametrize("name", ["file", "file.part"])
def test_download_refuses_a_pipe_which_would_block(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is a pipe"):
        download_from_any((NO_SERVER,), tmp_path / "file", SHA256, "")


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY, with ranges. The first response breaks off half-way."""

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        stop = len(BODY) // 2 if len(self.server.starts) == 1 else None
        self.wfile.write(BODY[start:stop])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.starts = []
        server.url = f"http://127.0.0.1:{server.server_port}/file"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


def test_download_continues_where_it_broke_off(tmp_path, server):
    path = tmp_path / "new" / "file"
    with pytest.raises(UserError, match=r"broke off.*run it again.*or pass --data FILE"):
        download(server.url, path, SHA256, "or pass --data FILE")
    assert not path.exists(), "an incomplete file must not have the final name"
    download(server.url, path, SHA256, "")
    assert path.read_bytes() == BODY
    assert server.starts == [0, len(BODY) // 2]


def test_download_uses_a_part_file_that_is_already_complete(tmp_path, server):
    (tmp_path / "file.part").write_bytes(BODY)
    download(server.url, tmp_path / "file", SHA256, "")
    assert (tmp_path / "file").read_bytes() == BODY


def test_download_deletes_a_file_with_another_checksum(tmp_path, server):
    server.starts.append(0)  # so that the response is complete
    with pytest.raises(UserError, match="another checksum"):
        download(server.url, tmp_path / "file", "0" * 64, "")
    assert list(tmp_path.iterdir()) == []


def test_download_from_any_tries_each_url_and_downloads_once(tmp_path, server, capsys):
    path = tmp_path / "file"
    path.write_bytes(b"another version")
    with pytest.raises(UserError, match=r"could not be fetched from 2 places: connect, or save the file as .*file$"):
        download_from_any((NO_SERVER, "not a url"), path, SHA256, "connect")
    server.starts.append(0)
    for _ in range(2):  # the second call finds the file
        download_from_any((NO_SERVER, server.url), path, SHA256, "connect")
    assert path.read_bytes() == BODY
    assert server.starts == [0, 0]
    assert "refused" in capsys.readouterr().out
