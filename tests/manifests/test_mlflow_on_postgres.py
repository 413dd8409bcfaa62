"""The commands of base/mlflow.yaml, as they stand there, on a real PostgreSQL."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.manifests.kustomized import Object, built, of_kind
from tests.servers import postgres
from tests.servers.ports import two_free_ports
from tests.servers.postgres import Database

START_SECONDS = 300


def pod() -> Object:
    spec: Object = of_kind(built("prod"), "Deployment")["isr-dpo-mlflow"]["spec"]["template"]["spec"]
    return spec


class Command(NamedTuple):
    arguments: list[str]
    environment: dict[str, str]


def command(container: Object, database: Database, port: int) -> Command:
    """What the container runs, its variables filled in as Kubernetes does; only the two ports are others."""
    given = {
        "NAMESPACE": "isr-dpo",
        "BUCKET": "example",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PGHOST": database.host,
        "PGSSLMODE": "disable",
        "PGPASSWORD": database.password,
    }
    names: dict[str, str] = {}
    for variable in container["env"]:
        optional = variable.get("valueFrom", {}).get("configMapKeyRef", {}).get("optional")
        if not optional:
            names[variable["name"]] = _filled(variable.get("value", given.get(variable["name"], "")), names)
    names["BACKEND"] = names["BACKEND"].replace(":5432/", f":{database.port}/")
    arguments = [_filled(text, names) for text in [*container["command"], *container.get("args", [])]]
    arguments = [f"--port={port}" if text == "--port=5000" else text for text in arguments]
    assert arguments[0] == "mlflow"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PG"))}
    return Command([sys.executable, "-m", *arguments], {**inherited, **names})


def _filled(text: str, names: dict[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda match: names[match[1]], text)


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.serve() as running:
        yield running


def migrate(database: Database) -> subprocess.CompletedProcess[str]:
    made = command(pod()["initContainers"][0], database, 5000)
    return subprocess.run(made.arguments, env=made.environment, capture_output=True, text=True, check=False)


def answer(port: int, path: str, host: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_starts_on_what_the_init_container_made(database: Database, tmp_path: Path) -> None:
    for _ in ("an empty database", "one that is up to date"):
        done = migrate(database)
        assert done.returncode == 0, done.stderr
    assert database.password not in done.stdout + done.stderr
    port = two_free_ports()
    server = command(pod()["containers"][0], database, port)
    assert database.password not in " ".join(server.arguments)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            server.arguments, env=server.environment, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
        )
    try:
        _await(port, process, tmp_path / "log")
        assert answer(port, "/health", "10.1.2.3:5000") == 200, "the kubelet's probes come by the pod's address"
        search = "/api/2.0/mlflow/registered-models/search"
        for host in ("isr-dpo-mlflow.isr-dpo:5000", "isr-dpo-mlflow:5000", "localhost:5000"):
            assert answer(port, search, host) == 200, host
        for host in ("evil.example.com", "isr-dpo-mlflow.isr-dpo", "10.1.2.3:5000"):
            assert answer(port, search, host) == 403, host
        assert not [path.name for path in tmp_path.iterdir() if path.name != "log"], "the root file system is read-only"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            answer(port, "/health", "localhost:5000")
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])


def test_the_address_that_clients_use_is_an_allowed_host() -> None:
    for name in ("dev", "prod"):
        objects = built(name)
        settings = of_kind(objects, "ConfigMap")["isr-dpo-settings"]
        (server,) = of_kind(objects, "Deployment")["isr-dpo-mlflow"]["spec"]["template"]["spec"]["containers"]
        (allowed,) = (text for text in server["args"] if text.startswith("--allowed-hosts="))
        hosts = allowed.partition("=")[2].replace("$(NAMESPACE)", settings["metadata"]["namespace"]).split(",")
        assert settings["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://") in hosts
