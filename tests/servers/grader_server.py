"""A double of an OpenAI-compatible endpoint on loopback that parses every body strictly and misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from openai.types.chat import ChatCompletion
from pydantic import BaseModel, ConfigDict

KEY = secrets.token_hex(16)


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    role: str
    content: str


class _Body(BaseModel):
    """All that a grader may send; anything else is refused with 400."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: list[_Message]
    temperature: float | int


@dataclass
class Answer:
    """What the server does with one request. `hang` in seconds."""

    text: str | None = "Explanation: it agrees.\nScore: 4"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    hang: float = 0.0
    cut: bool = False


@dataclass
class GraderServer:
    """`answer(prompt, n)` decides; n counts from 0 how often this prompt was asked."""

    url: str
    requests: list[tuple[float, str]]
    """(monotonic time, prompt) of every request that was well-formed."""
    most_at_once: list[int]


@contextlib.contextmanager
def grader_server(answer: Callable[[str, int], Answer]) -> Iterator[GraderServer]:
    lock = threading.Lock()
    state = GraderServer(url="", requests=[], most_at_once=[0])
    asked: dict[str, int] = {}
    active = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal active
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/chat/completions":
                return self._send(404, {"error": {"message": f"no such path {self.path}"}})
            if self.headers["Authorization"] != f"Bearer {KEY}":
                return self._send(401, {"error": {"message": f"bad key {self.headers['Authorization']}"}})
            try:
                body = _Body.model_validate_json(content)
            except ValueError as error:
                return self._send(400, {"error": {"message": str(error)}})
            if [m.role for m in body.messages] != ["user"] or body.temperature != 0:
                return self._send(400, {"error": {"message": "asked in another form than the protocol's"}})
            prompt = body.messages[0].content
            with lock:
                state.requests.append((time.monotonic(), prompt))
                count = asked[prompt] = asked.get(prompt, -1) + 1
                active += 1
                state.most_at_once[0] = max(state.most_at_once[0], active)
            try:
                return self._play(answer(prompt, count), body.model)
            finally:
                with lock:
                    active -= 1

        def _play(self, answer: Answer, model: str) -> None:
            time.sleep(answer.hang)
            if answer.cut:
                self.close_connection = True
                return None
            if answer.status != 200:
                return self._send(answer.status, {"error": {"message": "misbehaving", **answer.error}}, answer.headers)
            message = {"role": "assistant", "content": answer.text}
            completion = ChatCompletion.model_validate(
                {
                    "id": "c",
                    "object": "chat.completion",
                    "created": 0,
                    "model": model,
                    "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}],
                }
            )
            return self._send(200, completion.model_dump(mode="json"))

        def _send(self, status: int, tree: Any, headers: dict[str, str] | None = None) -> None:
            content = json.dumps(tree).encode()
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

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
