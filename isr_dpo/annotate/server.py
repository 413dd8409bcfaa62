"""The page for labelling, served on loopback alone.

Anyone's browser may be visiting other sites, so every request must name this server as its host (or a name that another
site has pointed here would do), choices must come from this page's origin and, like the rows, carry the token that
stands in the page, which no other site can read. What a model wrote travels as JSON and is shown as text.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import socketserver
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from importlib import resources
from typing import Any

from isr_dpo.annotate import footage
from isr_dpo.annotate.session import Refusal, Session
from isr_dpo.errors import IsrDpoError, RecipeError

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
PORT = 8410
LONGEST_BODY_BYTES = 4096
TOKEN_HEADER = "X-Annotate-Token"  # noqa: S105 - its name
_ASSETS = {"/annotate.css": "text/css; charset=utf-8", "/annotate.js": "text/javascript; charset=utf-8"}
_SAFE: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Server(socketserver.ThreadingTCPServer):
    """Serves one session; `port` 0 takes a free one. Raises RecipeError: the port is taken."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, session: Session, *, port: int = PORT) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise RecipeError(f"--port {port}: {error}; another one, or 0 for any that is free") from error

    @property
    def port(self) -> int:
        return int(self.socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """What a request may call this server."""
        return f"{HOST}:{self.port}", f"localhost:{self.port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), ConnectionError | TimeoutError):
            log.debug("a browser went away: %s", sys.exception())
        else:
            super().handle_error(request, client_address)


class _Forbidden(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version = "isr-dpo"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        content = self._content()  # whatever the answer: closed with unread bytes, a connection may lose it
        self._answered(lambda: self._post(content))

    def _answered(self, answer: Any) -> None:
        try:
            self._check_host()
            answer()
        except _Forbidden as error:
            self._json(HTTPStatus.FORBIDDEN, {"error": str(error)})
        except Refusal as error:
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        except IsrDpoError as error:
            log.warning("%s", error)
            self._json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": str(error)})

    def _get(self) -> None:
        session, path = self.server.session, self.path.partition("?")[0]
        if path == "/":
            page = _asset("/annotate.html").replace(b"{{token}}", self.server.token.encode())
            return self._send(HTTPStatus.OK, page, "text/html; charset=utf-8")
        if path in _ASSETS:
            return self._send(HTTPStatus.OK, _asset(path), _ASSETS[path])
        self._check_token()
        if path == "/state":
            return self._json(HTTPStatus.OK, session.state())
        if row := re.fullmatch(r"/rows/(\d{1,9})", path):
            return self._json(HTTPStatus.OK, session.item(int(row[1])))
        if frame := re.fullmatch(r"/rows/(\d{1,9})/frames/(\d{1,9})", path):
            return self._send(HTTPStatus.OK, session.frame(int(frame[1]), int(frame[2])), footage.KIND)
        return self._json(HTTPStatus.NOT_FOUND, {"error": f"nothing at {path}"})

    def _post(self, content: bytes) -> None:
        origin = self.headers.get("Origin")
        if origin not in [f"http://{host}" for host in self.server.hosts]:
            raise _Forbidden(f"a choice must come from this page, not from {origin}")
        self._check_token()
        if self.path != "/choices":
            return self._json(HTTPStatus.NOT_FOUND, {"error": f"nothing at {self.path}"})
        return self._json(HTTPStatus.OK, self.server.session.choose(_tree(content)))

    def _check_host(self) -> None:
        host = self.headers.get("Host")
        if host not in self.server.hosts:
            raise _Forbidden(f"this server is {self.server.url}, not {host}")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and self.path != "/":
            raise _Forbidden("another site's page asked for this")

    def _check_token(self) -> None:
        if not secrets.compare_digest(self.headers.get(TOKEN_HEADER, "").encode(), self.server.token.encode()):
            raise _Forbidden("this page belongs to a server that has ended: load it again")

    def _content(self) -> bytes:
        """The request's body, as far as it is read at all."""
        length = self.headers.get("Content-Length", "")
        return self.rfile.read(min(int(length), LONGEST_BODY_BYTES + 1)) if re.fullmatch(r"\d{1,9}", length) else b""

    def _json(self, status: HTTPStatus, tree: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(tree).encode(), "application/json")

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**_SAFE, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def _asset(path: str) -> bytes:
    return (resources.files(__package__) / path.lstrip("/")).read_bytes()


def _tree(content: bytes) -> dict[str, Any]:
    """The JSON object of a request. Raises Refusal."""
    if len(content) > LONGEST_BODY_BYTES:
        raise Refusal(f"a request of more than {LONGEST_BODY_BYTES} bytes")
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise Refusal("the body is not a JSON object")
    return tree
