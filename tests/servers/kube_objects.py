"""A double of a Kubernetes API server on loopback that shows objects and takes none: what a preflight looks at."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

NAMESPACE = "isr-dpo"
CORE = f"/api/v1/namespaces/{NAMESPACE}"


class KubeObjects:
    """As a context it runs. `objects` by path; `lists` of items by path."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.lists: dict[str, list[dict[str, Any]]] = {"/api/v1/nodes": [], f"{CORE}/resourcequotas": []}
        self.token = "a-token"
        self.forbidden: set[str] = set()

    def __enter__(self) -> KubeObjects:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, resource: str, name: str, **fields: Any) -> None:
        self.objects[f"{CORE}/{resource}/{name}"] = {"metadata": {"name": name}, **fields}

    def kubeconfig(self, path: Path) -> Path:
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "contexts": [{"name": "double", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}],
            "users": [{"name": "u", "user": {"token": "a-token"}}],
        }
        path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    def answer(self, path: str, labels: dict[str, str], token: str) -> tuple[int, dict[str, Any]]:
        if token != self.token:
            return 401, _status(401, "Unauthorized")
        if path in self.forbidden:
            return 403, _status(403, f"cannot read {path}")
        if path in self.lists:
            items = [i for i in self.lists[path] if labels.items() <= i["metadata"].get("labels", {}).items()]
            return 200, {"metadata": {}, "items": items}
        if path in self.objects:
            return 200, self.objects[path]
        return 404, _status(404, f"{path} not found")


def _status(code: int, said: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "message": said, "code": code}


def _handler(server: KubeObjects) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            selector = parse_qs(url.query).get("labelSelector", [""])[0]
            labels = dict(part.split("=") for part in selector.split(",") if part)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, tree = server.answer(url.path, labels, token)
            content = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
