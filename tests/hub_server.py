"""A local HTTP server that behaves like the Hugging Face hub for one repository, and fails on demand."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.ThreadingHTTPServer):
    """`files`: path in the repository → bytes. `log`: (method, path, range) of each request. `created`: the body of the
    request that created a repository; its commits go to `files`, each file whole (the real hub takes large ones apart).

    `faults`: "busy", how many requests are still answered with 429; "drop", how many file bodies are still cut off
    half-way; "down", if true, every connection is closed without an answer.
    """

    daemon_threads = True

    def __init__(self, repo, files, repo_type="datasets"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.files, self.prefix = repo, files, "datasets/" if repo_type == "datasets" else ""
        self.api = f"/api/{repo_type}/{repo}"
        self.faults = {"busy": 0, "drop": 0, "down": False}
        self.log, self.lock, self.created = [], threading.Lock(), None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def take_fault(self, name):
        """Whether this request must fail; decrements the fault's counter."""
        with self.lock:
            due = self.faults[name] > 0
            self.faults[name] -= due
            return due


@contextlib.contextmanager
def serve(repo, files, **kwargs):
    """Run a `HubServer` in a thread for the duration of a `with` block."""
    server = HubServer(repo, files, **kwargs)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        server, path = self.server, urllib.parse.unquote(self.path.partition("?")[0])
        server.log.append((self.command, path, self.headers.get("Range")))
        if server.faults["down"]:
            self.close_connection = True
        elif server.take_fault("busy"):
            self.answer(429, b'{"error":"slow down"}', {"Retry-After": "0"})
        elif path.startswith(f"/{server.prefix}{server.repo}/resolve/"):
            self.send_file(path.split("/resolve/")[1].partition("/")[2])
        elif path.startswith(f"{server.api}/tree/"):
            self.send_tree(path.removeprefix(f"{server.api}/tree/").partition("/")[2])
        elif path.startswith(f"{server.api}/paths-info/"):
            asked = urllib.parse.parse_qs(self.read_body().decode()).get("paths", [])
            self.answer_json([self.describe(name) for name in asked if name in server.files])
        elif self.command == "POST" and path == "/api/repos/create":
            self.create_repo()
        elif path == "/api/validate-yaml":
            self.read_body()
            self.answer_json({"errors": [], "warnings": []})
        elif path == f"{server.api}/preupload/main":
            asked = [file["path"] for file in json.loads(self.read_body())["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]
            self.answer_json({"files": modes})
        elif path == f"{server.api}/commit/main":
            self.commit()
        elif path == server.api or path.startswith(f"{server.api}/revision/"):
            siblings = [{"rfilename": name} for name in server.files]
            self.answer_json({"id": server.repo, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        else:
            self.answer(404, b'{"error":"not found"}', {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_POST = do_GET

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def create_repo(self):
        """Create the server's repository: it must not exist, and the request needs a token."""
        wanted = json.loads(self.read_body())
        if not self.headers.get("Authorization"):
            self.answer(401, b'{"error":"unauthorized"}', {})
        elif self.server.created or self.server.files:
            self.answer(409, b'{"error":"You already created this model repo"}', {})
        else:
            self.server.created = wanted
            self.answer_json({"url": f"{self.server.url}/{self.server.repo}"})

    def commit(self):
        """Add the files of a commit, which is one JSON object a line."""
        for line in map(json.loads, self.read_body().splitlines()):
            if line["key"] == "file":
                self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        self.answer_json({"commitUrl": f"{self.server.url}/{self.server.repo}/commit/{COMMIT}", "commitOid": COMMIT})

    def describe(self, name):
        data = self.server.files[name]
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_tree(self, folder):
        recursive = "recursive=true" in self.path.lower()
        prefix = folder + "/" if folder else ""
        names = [name for name in self.server.files if name.startswith(prefix)]
        files = [name for name in names if recursive or "/" not in name[len(prefix) :]]
        folders = {prefix + name[len(prefix) :].rpartition("/")[0] for name in names if "/" in name[len(prefix) :]}
        if not recursive:
            folders = {prefix + name[len(prefix) :].split("/")[0] for name in names if "/" in name[len(prefix) :]}
        if not names:
            self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        entries = [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        self.answer_json(entries + [self.describe(name) for name in files])

    def send_file(self, name):
        data = self.server.files.get(name)
        if data is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        status, span = 200, self.headers.get("Range")
        if span:
            first, last = span.removeprefix("bytes=").split("-")
            last = min(int(last or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            status, data = 206, data[int(first) : last + 1]
        drop = self.command == "GET" and len(data) > 1000 and self.server.take_fault("drop")
        self.answer(status, data, headers, sent=len(data) // 2 if drop else None)

    def answer_json(self, value):
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status, body, headers, sent=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
        if sent is not None:
            self.close_connection = True
