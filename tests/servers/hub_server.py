"""A Hugging Face hub on loopback with org/tiny, a model and a data set of the same files, as much of it as
huggingface_hub asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = hashlib.sha1(b"commit").hexdigest()


@dataclass
class Hub:
    files: dict[str, bytes]
    token: str | None = None
    """Without it every request is refused."""
    trouble: int | None = None
    """The status of every answer."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    """Method and path of every request."""


@contextlib.contextmanager
def hub_server(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """Serves `files` by their names in the repository."""
    hub = Hub(dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
            if hub.trouble is not None:
                self._send(hub.trouble, b"{}")
            elif hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
                self._send(401, b"{}")
            elif path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
                self._send(200, json.dumps({"id": "org/tiny", "sha": COMMIT}).encode())
            elif path.startswith(f"/api/models/org/tiny/tree/{COMMIT}"):
                self._send(200, json.dumps([_entry(name, content) for name, content in hub.files.items()]).encode())
            elif (name := path.removeprefix(f"/org/tiny/resolve/{COMMIT}/")) in hub.files:
                self._send(200, hub.files[name])
            else:
                found = path.startswith(("/api/models/org/tiny", "/org/tiny/"))
                self._send(404, b"{}", code="EntryNotFound" if found else "RepoNotFound")

        do_HEAD = do_GET

        def _send(self, status: int, content: bytes, *, code: str | None = None) -> None:
            self.send_response(status)
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if code is not None:
                headers["X-Error-Code"] = code
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
