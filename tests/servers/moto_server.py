"""moto's S3 server on loopback: a mock that runs everywhere. It takes any secret for right."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.servers import s3_environment


class _OneAtATime:
    """S3 decides conditional writes one after another; moto's threads would look first and write later."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        with self._turn:
            return list(self._app(environ, start_response))


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: object) -> None:
        """A line a request would bury what a failing test says."""


@contextlib.contextmanager
def serve() -> Iterator[dict[str, str]]:
    """Yields the environment that reaches it, bucket included (`RUN_BUCKET`)."""
    server = make_server("127.0.0.1", 0, _OneAtATime(), threaded=True, request_handler=_Quiet)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield s3_environment.make(f"http://127.0.0.1:{server.port}", *s3_environment.keys())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
