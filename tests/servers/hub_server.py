"""A Hugging Face hub on loopback, as much of it as huggingface_hub asks for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = hashlib.sha1(b"commit").hexdigest()
_ASKED = re.compile(r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)(?P<what>/revision/main|/tree/.+)?")
_FILE = re.compile(rf"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(main|{COMMIT})/(?P<file>.+)")


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
def hub_server(files: Mapping[str, bytes], *, others: Mapping[str, Mapping[str, bytes]] | None = None) -> Iterator[Hub]:
    """Serves `files` by their names in org/tiny, a model and a data set; `others` are more repositories by name, data
    sets as `datasets/ORG/NAME`."""
    hub = Hub(dict(files))
    repositories = {"org/tiny": hub.files, "datasets/org/tiny": hub.files, **(others or {})}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urllib.parse.unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            if hub.trouble is not None:
                self._send(hub.trouble, b"{}")
            elif hub.token and self.headers.get("authorization") != f"Bearer {hub.token}":
                self._send(401, b"{}")
            elif match := _ASKED.fullmatch(path):
                kept = repositories.get(("datasets/" if match["kind"] == "datasets" else "") + match["name"])
                self._tell(kept, match["name"], match["what"] or "")
            else:
                match = _FILE.fullmatch(path)
                kept = repositories.get((match["kind"] or "") + match["name"]) if match else None
                content = kept.get(match["file"]) if match and kept is not None else None
                self._send(404 if content is None else 200, b"{}" if content is None else content, code=_lacking(kept))

        def _tell(self, kept: Mapping[str, bytes] | None, name: str, what: str) -> None:
            folder = what.removeprefix(f"/tree/{COMMIT}")
            if kept is None or (folder == what and what.startswith("/tree")):
                self._send(404, b"{}", code=_lacking(kept))
            elif not what.startswith("/tree"):
                self._send(200, json.dumps({"id": name, "sha": COMMIT}).encode())
            else:
                prefix = f"{folder.strip('/')}/".lstrip("/")
                listed = [_entry(file, content) for file, content in kept.items() if file.startswith(prefix)]
                self._send(200, json.dumps(listed).encode())

        do_HEAD = do_GET

        def _send(self, status: int, content: bytes, *, code: str | None = None) -> None:
            self.send_response(status)
            headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if status == 404 and code is not None:
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


def _lacking(kept: Mapping[str, bytes] | None) -> str:
    return "RepoNotFound" if kept is None else "EntryNotFound"


def _entry(name: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
