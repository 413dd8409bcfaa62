"""The rollout as its pod does it: the real kubectl, with the arguments of serving/rollout.yaml, asks for no more than
its role allows. The API server is a double that knows one Deployment."""

from __future__ import annotations

import contextlib
import copy
import http.server
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isr_dpo.cli import main
from isr_dpo.mlflow_client import open_client
from tests.manifests.kustomized import Object, built, of_kind
from tests.servers.mlflow_server import fresh_database

DEPLOYMENT = "/apis/apps/v1/namespaces/isr-dpo/deployments/isr-dpo-serving"
DISCOVERY: dict[str, Object] = {
    "/version": {"major": "1", "minor": "32", "gitVersion": "v1.32.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": [
            {
                "name": "apps",
                "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"},
            }
        ],
    },
    "/apis/apps/v1": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": "apps/v1",
        "resources": [
            {
                "name": "deployments",
                "singularName": "deployment",
                "namespaced": True,
                "kind": "Deployment",
                "verbs": ["get", "patch"],
            }
        ],
    },
}
"""What every account may read."""


class Cluster:
    """Holds the Deployment and what was asked beside discovery."""

    def __init__(self, deployment: Object) -> None:
        self.deployment = copy.deepcopy(deployment)
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    @property
    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.deployment["spec"]["template"]["metadata"].get("annotations", {})
        return found


def handler(cluster: Cluster) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in DISCOVERY:
                return self._reply(200, DISCOVERY[path])
            cluster.asked.append(("get", path))
            return self._reply(200, cluster.deployment) if path == DEPLOYMENT else self._refuse(path)

        def do_PATCH(self) -> None:
            path = self.path.partition("?")[0]
            cluster.asked.append(("patch", path))
            patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/strategic-merge-patch+json"
            if path != DEPLOYMENT:
                return self._refuse(path)
            merge(cluster.deployment, patch)
            return self._reply(200, cluster.deployment)

        def _refuse(self, path: str) -> None:
            self._reply(403, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": path, "code": 403})

        def _reply(self, status: int, tree: Object) -> None:
            body = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line a request would bury what a failing test says."""

    return Handler


def merge(tree: dict[str, Any], patch: dict[str, Any]) -> None:
    """A strategic merge patch that holds mappings alone."""
    for key, value in patch.items():
        if isinstance(value, dict):
            merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed: the rollout is not tried")
    running = Cluster(of_kind(built("prod"), "Deployment")["isr-dpo-serving"])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(running))
    running.url = f"http://127.0.0.1:{server.server_port}"
    with contextlib.closing(server.socket):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield running
        server.shutdown()


def roll_out(cluster: Cluster, registry: str, work: Path) -> str:
    """Both containers of the pod, one after the other; what kubectl says."""
    pod = of_kind(built("prod"), "CronJob")["isr-dpo-serving-rollout"]["spec"]["jobTemplate"]["spec"]["template"][
        "spec"
    ]
    (ask,), (patch,) = pod["initContainers"], pod["containers"]

    def here(argument: str) -> str:
        filled = argument.replace("$(MODEL_NAME)", "m").replace("$(MLFLOW_TRACKING_URI)", registry)
        return filled.replace("$(NAMESPACE)", "isr-dpo").replace("/work/", f"{work}/")

    assert main([*ask["command"][1:], *map(here, ask["args"])]) == 0
    command = ["kubectl", f"--server={cluster.url}", *map(here, patch["args"])]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin", "HOME": str(work)}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_moved_alias_rolls_the_deployment_and_asks_for_no_more_than_the_role_allows(
    cluster: Cluster, tmp_path: Path
) -> None:
    registry = fresh_database(tmp_path)
    client = open_client(registry)
    client.create_registered_model("m")
    before = copy.deepcopy(cluster.deployment)
    for policy in ("s3://bucket/runs/a/policy-03", "s3://bucket/runs/b/policy-09"):
        client.set_registered_model_alias("m", "champion", client.create_model_version("m", source=policy).version)
        assert "patched" in roll_out(cluster, registry, tmp_path)
        assert cluster.annotations == {"isr-dpo/policy": policy}
        assert "no change" in roll_out(cluster, registry, tmp_path), "the same champion starts nothing"
    (role,) = (rule for rule in of_kind(built("prod"), "Role")["isr-dpo-serving-rollout"]["rules"])
    assert {verb for verb, _ in cluster.asked} == set(role["verbs"])
    assert {path for _, path in cluster.asked} == {DEPLOYMENT}
    del cluster.deployment["spec"]["template"]["metadata"]["annotations"]
    assert cluster.deployment == before, "nothing else was changed"
