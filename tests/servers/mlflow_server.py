"""Real MLflow for tests: a fresh database a test, and one `mlflow server` process a test session, on loopback."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from isr_dpo.mlflow_client import open_client
from tests.servers.ports import two_free_ports

START_SECONDS = 300


@functools.cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="isr-dpo-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _template() -> Path:
    """A database that holds the schema and nothing else; making one takes seconds, copying it does not."""
    file = _scratch() / "template.db"
    open_client(f"sqlite:///{file}")
    return file


def fresh_database(folder: Path) -> str:
    """The tracking URI of an empty MLflow database in `folder`."""
    file = folder / "mlflow.db"
    shutil.copyfile(_template(), file)
    return f"sqlite:///{file}"


def shared_server(database: str | None = None) -> str:
    """The address of an `mlflow server` on `database`, or on one of SQLite, that lives as long as the test session.
    Tests share it: name things apart."""
    return _server(database)


@functools.cache
def _server(database: str | None) -> str:
    folder = _scratch() / ("server" if database is None else "server-on-another-database")
    folder.mkdir()
    port = two_free_ports()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        database or fresh_database(folder),
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | quiet
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
    atexit.register(_stop, process)
    url = f"http://127.0.0.1:{port}"
    _await(url, process, folder / "log.txt")
    return url


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=20):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"mlflow server did not start within {START_SECONDS} s:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and the workers it started: they are one session of their own."""
    for stop in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, stop)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            continue
