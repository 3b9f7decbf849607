"""Downloads: continued after a broken connection, accepted only with the right checksum."""

import hashlib
import http.server
import threading

import pytest

from system.download import download
from system.errors import UserError

BODY = bytes(range(256)) * 3000


class Server(http.server.BaseHTTPRequestHandler):
    """Serves BODY with byte ranges, and closes the first connection after half of it."""

    def do_GET(self):
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.starts.append(start)
        if start >= len(BODY):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        self.end_headers()
        first = len(self.server.starts) == 1
        self.wfile.write(BODY[start : len(BODY) // 2] if first else BODY[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.starts = []
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def test_download_continues_a_broken_download(tmp_path, server):
    url, path = f"http://127.0.0.1:{server.server_port}/f.jsonl", tmp_path / "new" / "f.jsonl"
    sha256 = hashlib.sha256(BODY).hexdigest()
    with pytest.raises(UserError, match=r"broke off.*run it again.*pass --data"):
        download(url, path, sha256, "or pass --data FILE")
    assert not path.exists(), "an incomplete file never gets the final name"
    download(url, path, sha256, "")
    assert path.read_bytes() == BODY
    assert server.starts == [0, len(BODY) // 2]
    with pytest.raises(UserError, match="checksum"):
        download(url, tmp_path / "g.jsonl", "0" * 64, "")
    assert not list(tmp_path.glob("g.jsonl*"))
    (tmp_path / "h.jsonl.part").write_bytes(BODY)  # complete already: the server answers 416
    download(url, tmp_path / "h.jsonl", sha256, "")
