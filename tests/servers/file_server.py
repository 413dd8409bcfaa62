"""A server of files on loopback that knows Range and conditions, as object stores and hubs do, and misbehaves on
request."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Asked:
    path: str
    """With the query."""
    headers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How one request is treated. `cut`: the connection ends after so many bytes of the body; `ranges`: whether Range
    is known; `length`: a Content-Length that is a lie; `tag`: the ETag, None for none."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    cut: int | None = None
    ranges: bool = True
    length: int | None = None
    tag: str | None = ""


@dataclass
class Served:
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)


@contextlib.contextmanager
def file_server(
    files: Mapping[str, bytes],
    manner: Callable[[Asked, int], Manner] = lambda asked, n: Manner(),
    *,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Served]:
    """Serves `files` by path ("/folder/a.tar"); `manner(asked, n)` is told how often, from 0, a path was asked for."""
    state = Served(files=dict(files))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = Asked(self.path, {name.lower(): value for name, value in self.headers.items()})
            with lock:
                count = sum(each.path == asked.path for each in state.asked)
                state.asked.append(asked)
            with contextlib.suppress(ConnectionError):
                self._answer(asked, manner(asked, count))

        def _answer(self, asked: Asked, how: Manner) -> None:
            content = how.body if how.body is not None else state.files.get(asked.path.partition("?")[0])
            if content is None:
                return self._send(404, b"", {}, how)
            if how.status != 200 or how.body is not None:
                return self._send(how.status, content if how.body is not None else b"", how.headers, how)
            tag = f'"{hashlib.md5(content).hexdigest()}"' if how.tag == "" else how.tag
            headers = {**how.headers, **({"ETag": tag} if tag else {})}
            start = self._start(asked, tag) if how.ranges else 0
            if start >= len(content) > 0:
                return self._send(416, b"", headers, how)
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206 if start else 200, content[start:], headers, how)

        def _start(self, asked: Asked, tag: str | None) -> int:
            if "range" not in asked.headers or asked.headers.get("if-range", tag) != tag:
                return 0
            first, _, last = asked.headers["range"].removeprefix("bytes=").partition("-")
            assert last == ""
            return int(first)

        def _send(self, status: int, content: bytes, headers: Mapping[str, str], how: Manner) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if how.length is None else how.length))
            self.end_headers()
            self.wfile.write(content if how.cut is None else content[: how.cut])
            if how.cut is not None or how.length is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
