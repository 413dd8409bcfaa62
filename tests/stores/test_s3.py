import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from isr_dpo.errors import IsrDpoError, OutsideError, RecipeError, StoreError
from isr_dpo.stores import Exists, Missing, join, open_store, read_bytes, s3, write_bytes
from isr_dpo.stores.s3 import S3Store

MIB = 1 << 20
on_s3 = pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)
on_ceph = pytest.mark.parametrize("run_uri", ["ceph"], indirect=True)


@on_s3
def test_a_large_file_travels_in_parts(run_uri: str, tmp_path: Path) -> None:
    content = os.urandom(20 * MIB + 7)
    (tmp_path / "source").write_bytes(content)
    store = S3Store(multipart_bytes=6 * MIB, part_bytes=5 * MIB, threads=4)
    uri = join(run_uri, "model.safetensors")
    store.put(tmp_path / "source", uri)
    store.get(uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == content
    assert store.list(run_uri) == {"model.safetensors": len(content)}
    assert s3.read_tagged(uri).tag.endswith('-5"'), "not in five parts"


@on_s3
def test_conditional_creation_of_a_large_file_is_refused(run_uri: str, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(2 * MIB))
    with pytest.raises(ValueError, match=f"{2 * MIB} bytes cannot be created conditionally, less than {MIB} can"):
        S3Store(multipart_bytes=MIB).put(tmp_path / "source", join(run_uri, "object"), if_absent=True)
    assert S3Store().list(run_uri) == {}


@on_s3
def test_a_swap_wins_only_against_the_content_it_saw(run_uri: str) -> None:
    uri = join(run_uri, "lock.json")
    first = s3.swap(uri, b"1", None)
    with pytest.raises(Exists):
        s3.swap(uri, b"2", None)
    second = s3.swap(uri, b"2", first)
    with pytest.raises(Exists):
        s3.swap(uri, b"3", first)
    assert s3.read_tagged(uri) == (b"2", second)
    open_store(run_uri).delete(uri)
    with pytest.raises((Exists, Missing)):
        s3.swap(uri, b"3", second)


def actions(uri: str) -> list[Callable[[], object]]:
    return [
        lambda: read_bytes(join(uri, "object")),
        lambda: write_bytes(join(uri, "object"), b"x"),
        lambda: write_bytes(join(uri, "object"), b"x", if_absent=True),
        lambda: open_store(uri).list(uri),
        lambda: open_store(uri).delete(uri),
    ]


@on_s3
def test_a_missing_bucket_is_named(run_uri: str) -> None:
    for action in actions("s3://no-such-bucket/run"):
        with pytest.raises(
            StoreError, match=f"no bucket 'no-such-bucket' at {os.environ['AWS_ENDPOINT_URL']}"
        ) as error:
            action()
        assert not error.value.retry


@on_ceph
def test_a_wrong_secret_is_named(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets.token_hex(16))
    s3._client.cache_clear()
    for action in actions(run_uri):
        with pytest.raises(StoreError, match=r"refuses access to bucket 'runs' .*AWS_SECRET_ACCESS_KEY") as error:
            action()
        assert "wrong" not in str(error.value)


@on_ceph
def test_an_unknown_access_key_is_named(run_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    s3._client.cache_clear()
    with pytest.raises(StoreError, match=r"InvalidAccessKeyId.*AWS_ACCESS_KEY_ID"):
        open_store(run_uri).list(run_uri)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Points the client at a port of this machine."""

    def point(port: int) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", secrets.token_hex(8))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secrets.token_hex(16))
        s3._client.cache_clear()

    yield point
    s3._client.cache_clear()


def test_an_endpoint_that_is_away_is_named_within_seconds(at: Callable[[int], None]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]  # bound, not listening: refuses
        at(port)
        began = time.monotonic()
        with pytest.raises(OutsideError, match=f"s3://runs/run: .*http://127.0.0.1:{port}.*AWS_ENDPOINT_URL") as error:
            open_store("s3://runs/run").list("s3://runs/run")
    assert error.value.retry
    assert time.monotonic() - began < 50


@pytest.fixture
def ailing(at: Callable[[int], None]) -> Iterator[list[int]]:
    """A server that answers with the statuses in the list, then with 200; what it answered is left at the front."""
    statuses: list[int] = []

    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = statuses.pop(0) if statuses else 200
            body = b"<Error><Code>ConditionalRequestConflict</Code></Error>" if status == 409 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        at(server.server_port)
        yield statuses
        server.shutdown()
        thread.join()


def test_a_short_illness_of_the_server_is_outlasted(ailing: list[int]) -> None:
    ailing[:] = [503, 500]
    write_bytes("s3://runs/run/object", b"x")
    assert ailing == []


def test_a_conflict_of_conditional_writes_is_tried_again(ailing: list[int]) -> None:
    ailing[:] = [409]  # AWS: neither of two writers that met may have won
    write_bytes("s3://runs/run/object", b"x", if_absent=True)
    ailing[:] = [409, 412]
    with pytest.raises(Exists):
        write_bytes("s3://runs/run/object", b"x", if_absent=True)


def test_a_long_illness_of_the_server_is_named_after_four_attempts(ailing: list[int]) -> None:
    ailing[:] = [503] * 9
    with pytest.raises(OutsideError, match=r"s3://runs/run/object: http://127.0.0.1:\d+ fails \(503"):
        write_bytes("s3://runs/run/object", b"x")
    assert len(ailing) == 5


def test_missing_credentials_are_named(at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    at(1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match="no credentials: set AWS_ACCESS_KEY_ID"):
        open_store("s3://runs/run").list("s3://runs/run")


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("s3://", RecipeError, "names no bucket"),
        ("s3:///run", RecipeError, "names no bucket"),
        ("s3://no bucket/run", StoreError, "Invalid bucket name"),
    ],
)
def test_an_impossible_bucket_is_named(
    uri: str, error: type[IsrDpoError], message: str, at: Callable[[int], None]
) -> None:
    at(1)
    with pytest.raises(error, match=message):
        open_store(uri).list(uri)


def test_an_impossible_endpoint_is_named(at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    at(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StoreError, match=r"localhost:9000.*mend AWS_ENDPOINT_URL"):
        open_store("s3://runs/run").list("s3://runs/run")


def test_threads_share_a_client_and_forked_processes_do_not(at: Callable[[int], None]) -> None:
    at(1)
    ours = s3.client()
    assert s3.client() is ours
    child = os.fork()
    if child == 0:
        os._exit(0 if s3.client() is not ours else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
