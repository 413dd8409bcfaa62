"""What the doubles of OpenAI-compatible endpoints share: a server on loopback that takes chat completions in the form
that its double knows, and misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
import urllib.parse
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, TypeVar

KEY = secrets.token_hex(16)
P = TypeVar("P")
A = TypeVar("A", bound="Manner")


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How the server treats one request. `hang` in seconds; `cut` ends the connection without an answer, `half` in the
    middle of it."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    hang: float = 0.0
    cut: bool = False
    half: bool = False


@dataclass(frozen=True)
class Call:
    """A request to another path than that of completions."""

    method: str
    path: str
    query: Mapping[str, str]
    content_type: str
    content: bytes


@dataclass(frozen=True)
class Said:
    """What is answered to it. `tree` is JSON, or text; `cut` ends the connection without an answer."""

    status: int = 200
    tree: Any = None
    cut: bool = False


@dataclass
class Served(Generic[P]):
    """`asked` and `times` (monotonic): of every request that was well-formed."""

    url: str = ""
    asked: list[P] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    unknown: int = 0
    """Requests with another key."""


@contextlib.contextmanager
def completions_server(
    parse: Callable[[bytes], P],
    known_by: Callable[[P], Hashable],
    answer: Callable[[P, int], A],
    completion: Callable[[A, P], dict[str, Any]],
    other: Callable[[Call], Said | None] = lambda _: None,
) -> Iterator[Served[P]]:
    """A server for requests that `parse` reads; it raises ValueError for another form, which is refused with 400.

    `answer(request, n)` decides; n counts from 0 how often one `known_by` the same was asked. `completion` words what
    is answered with 200. `other` answers on other paths; None: there is no such path.
    """
    lock = threading.Lock()
    state = Served[P]()
    counts: dict[Hashable, int] = {}
    active = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal active
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return self._unknown()
            if self.path != "/v1/chat/completions":
                return self._other("POST", content)
            try:
                asked = parse(content)
            except ValueError as error:
                return self._send(400, {"error": {"message": str(error)}})
            with lock:
                state.asked.append(asked)
                state.times.append(time.monotonic())
                count = counts[known_by(asked)] = counts.get(known_by(asked), -1) + 1
                active += 1
                state.most_at_once = max(state.most_at_once, active)
            try:
                how = answer(asked, count)
                time.sleep(how.hang)
            finally:  # before the answer: whoever has it may ask for the next
                with lock:
                    active -= 1
            return self._play(how, asked)

        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return self._unknown()
            return self._other("GET", b"")

        def _unknown(self) -> None:
            with lock:
                state.unknown += 1
            said = f"Incorrect API key provided: {self.headers['Authorization']}"
            return self._send(401, {"error": {"message": said, "code": "invalid_api_key"}})

        def _other(self, method: str, content: bytes) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            said = other(Call(method, url.path, query, self.headers.get("Content-Type", ""), content))
            if said is None:
                return self._send(404, {"error": {"message": f"no such path {self.path}"}})
            if said.cut:
                self.close_connection = True
                return None
            return self._send(said.status, said.tree)

        def _play(self, answer: A, asked: P) -> None:
            if answer.cut:
                self.close_connection = True
                return None
            if answer.status != 200:
                error = {"error": {"message": "misbehaving", **answer.error}}
                return self._send(answer.status, error, answer.headers)
            return self._send(200, completion(answer, asked), half=answer.half)

        def _send(
            self, status: int, tree: Any, headers: Mapping[str, str] | None = None, *, half: bool = False
        ) -> None:
            content = tree.encode() if isinstance(tree, str) else json.dumps(tree).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if half else content)
            self.close_connection |= half

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
