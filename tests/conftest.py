"""What every test gets: no network but loopback, no keys and no cache of the user's; and a run URI on every store."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, also for child processes: tests share cores


@pytest.fixture(scope="session", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Also for the processes that tests start. They end by SIGINT even where a shell's background job is what tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("AWS_", "OPENAI_", "MLFLOW_")):
                patch.delenv(name)
        patch.setenv("ISR_DPO_CACHE", str(folder / "cache"))
        patch.setenv("HF_HOME", str(folder / "huggingface"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(folder / "aws-config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "aws-credentials"))
        patch.setattr(socket.socket, "connect", _loopback_only(socket.socket.connect))
        yield


def _loopback_only(connect: Callable[..., None]) -> Callable[..., None]:
    def guarded(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"  # a Unix socket's address is its path
        assert host in ("localhost", "::1") or host.startswith("127."), f"a test reaches out to {address}"
        connect(self, address)

    return guarded


@pytest.fixture(scope="session")
def moto() -> Iterator[dict[str, str]]:
    """The environment that reaches moto's S3 server."""
    from tests.servers import moto_server

    with moto_server.serve() as environment:
        yield environment


@pytest.fixture(scope="session")
def ceph() -> Iterator[dict[str, str]]:
    """The environment that reaches a real Ceph gateway; skipped where Ceph is not installed."""
    from tests.servers import ceph as server

    if server.missing():
        pytest.skip(server.missing())
    with server.serve() as environment:
        yield environment


@pytest.fixture(params=["local", "moto", "ceph"])
def run_uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new, empty run URI on every kind of store, the server in reach of this process and of those it starts.

    `@pytest.mark.parametrize("run_uri", ["moto", "ceph"], indirect=True)` picks among them.
    """
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    from isr_dpo.stores import s3

    environment: dict[str, str] = request.getfixturevalue(request.param)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for cache in (s3._client, s3._signer):
        cache.cache_clear()
    yield f"s3://{environment['RUN_BUCKET']}/{secrets.token_hex(8)}"
    for cache in (s3._client, s3._signer):
        cache.cache_clear()
