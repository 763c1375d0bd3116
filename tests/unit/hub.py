"""A small stand-in for the Hugging Face hub: logins, new repositories, and commits of small files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """A hub at a free port of this machine, and what it was told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.refuses_commits = False
        self.user: dict[str, Any] = {"name": "me", "orgs": [{"name": "organisation"}]}

    def create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Make a repository."""
        name = f"{wanted['organization']}/{wanted['name']}"
        self.repositories[name] = wanted
        return {"url": f"{self.address}/{name}"}

    def commit(self, body: bytes) -> dict[str, Any]:
        """Take the files of a commit."""
        for entry in map(json.loads, body.splitlines()):
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        name = next(iter(self.repositories))
        return {"success": True, "commitOid": "a" * 40, "commitUrl": f"{self.address}/{name}/commit/1"}


class Handler(BaseHTTPRequestHandler):
    """Answers what the hub's own client asks for an upload of small files."""

    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer who is logged in."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid credentials"}, 401)
        elif self.path.startswith("/api/whoami-v2"):
            self._answer(self.server.user)
        else:
            self._answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        """Take a repository, or a commit in its two parts."""
        body = self._body()
        if self.path == "/api/repos/create":
            self._answer(self.server.create(json.loads(body)))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            small = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": name, **small} for name in names]})
        elif "/commit/" in self.path and not self.server.refuses_commits:
            self._answer(self.server.commit(body))
        else:
            self._answer({"error": "the repository is full"}, 403)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that answers meanwhile."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
