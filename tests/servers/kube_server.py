"""A Kubernetes API server's double on loopback: TrainJobs, their pods and logs, with state.

Every TrainJob is parsed by Kubeflow Trainer's own models; fields that these do not know, and query parameters that the
API server does not, are refused. Nothing happens by itself: a test plays the controller (`run`, `complete`, `fail`),
the kubelet (`say`), other people (`delete`) and the API server's bad days (`compact`, `cut`, `deny`, `expire`, `away`).
"""

from __future__ import annotations

import copy
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

NAMESPACE = "isr-dpo"
TOKEN = "a-token"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
RESERVED = {f"PET_{name}" for name in ("NNODES", "NPROC_PER_NODE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")}
_LIST = {"fieldSelector", "labelSelector", "watch", "resourceVersion", "timeoutSeconds", "allowWatchBookmarks"}
_KNOWN = {
    "create": {"fieldValidation"},
    "get": set[str](),
    "list": _LIST,
    "watch": _LIST,
    "delete": {"propagationPolicy"},
    "log": {"container", "follow", "timestamps", "tailLines", "sinceSeconds"},
}


class Said(NamedTuple):
    """An answer."""

    status: int
    tree: Mapping[str, Any]


class Asked(NamedTuple):
    """A request, as RBAC names it."""

    verb: str
    resource: str
    name: str
    query: Mapping[str, str]


class Event(NamedTuple):
    version: int
    kind: str
    job: Mapping[str, Any]


class KubeServer:
    """As a context it runs; `url` is where."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.asked: list[Asked] = []
        self.tokens = {TOKEN}
        self.knows_trainer = True
        self.removal_seconds = 0.0
        """How long a foreground deletion takes."""
        self._logs: dict[tuple[str, int], list[str]] = {}
        self._lines = 0
        self._denied: set[tuple[str, str]] = set()
        self._events: list[Event] = []
        self._version = 100
        self._oldest = 0
        self._cuts = 0
        self._away_until = 0.0
        self._news = threading.Condition(threading.RLock())

    def __enter__(self) -> KubeServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.tokens = set()  # connections that are kept alive outlive the server
        self.cut()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path, token: str = TOKEN) -> Path:
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "double",
            "contexts": [{"name": "double", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": token}}],
        }
        path.write_text(json.dumps(tree), encoding="utf-8")
        return path

    # What a test lets happen.

    def wait_for(self, verb: str, *, times: int = 1, seconds: float = 120.0) -> None:
        """Until `verb` was asked so often."""
        until = time.monotonic() + seconds
        while sum(asked.verb == verb for asked in self.asked) < times:
            assert time.monotonic() < until, f"no {verb}: {[asked.verb for asked in self.asked]}"
            time.sleep(0.01)

    def job(self) -> dict[str, Any]:
        """The only one, once it is there."""
        until = time.monotonic() + 120
        while not self.jobs:
            assert time.monotonic() < until, f"no job: {[asked.verb for asked in self.asked]}"
            time.sleep(0.01)
        (job,) = self.jobs.values()
        return job

    def run(self, *, nodes: int = 2) -> None:
        """The controller creates the pods, the kubelets start them."""
        job = self.job()
        with self._news:
            for rank in range(nodes):
                self.start_pod(job["metadata"]["name"], rank)
            counts = dict.fromkeys(("failed", "ready", "succeeded", "suspended"), 0)
            self._change(job, {"jobsStatus": [{"name": "node", "active": nodes, **counts}]})

    def start_pod(self, job: str, rank: int, state: Mapping[str, Any] | None = None) -> None:
        name = f"{job}-node-0-{rank}-{uuid.uuid4().hex[:5]}"
        with self._news:
            self.pods[name] = {
                "metadata": {
                    "name": name,
                    "creationTimestamp": f"2026-01-01T00:00:{len(self.pods):02d}Z",
                    "labels": {
                        "jobset.sigs.k8s.io/jobset-name": job,
                        "batch.kubernetes.io/job-completion-index": str(rank),
                    },
                },
                "status": {"containerStatuses": [_container(dict(state or {"running": {}}))]},
            }

    def say(self, line: str, *, node: int = 0) -> None:
        """A node's newest pod prints a line."""
        with self._news:
            self._lines += 1
            stamp = f"2026-01-01T00:00:00.{self._lines:09d}Z"
            self._logs.setdefault(self._container_of(self._pods_of(node)[-1]), []).append(f"{stamp} {line}")
            self._news.notify_all()

    def end_pod(self, node: int, exit_code: int, reason: str = "Error") -> None:
        with self._news:
            pod = self.pods[self._pods_of(node)[-1]]
            ended = {"terminated": {"exitCode": exit_code, "reason": reason}}
            pod["status"]["containerStatuses"][0] |= {"state": ended, "ready": False}
            self._news.notify_all()

    def restart_pod(self, node: int, exit_code: int) -> None:
        """The kubelet starts a container again where it stood, which begins a log of its own."""
        with self._news:
            status = self.pods[self._pods_of(node)[-1]]["status"]["containerStatuses"][0]
            status["lastState"] = {"terminated": {"exitCode": exit_code, "reason": "Error"}}
            status["restartCount"] += 1
            status["state"] = {"running": {}}
            self._news.notify_all()

    def complete(self) -> None:
        self._end("Complete", "AllJobsCompleted", "jobset completed successfully")

    def fail(self, reason: str = "FailedJobs", said: str = "jobset failed due to one or more job failures") -> None:
        self._end("Failed", reason, said)

    def delete(self, name: str) -> None:
        """Somebody else deletes a job."""
        with self._news:
            job = self.jobs.pop(name)
            self.pods.clear()
            self._tell("DELETED", job)

    def compact(self) -> None:
        """Forgets all versions until now: whoever watches from one of them is told 410."""
        with self._news:
            self._version += 1
            self._oldest = self._version
            self._news.notify_all()

    def cut(self) -> None:
        """Ends all streams."""
        with self._news:
            self._cuts += 1
            self._news.notify_all()

    def deny(self, verb: str, resource: str) -> None:
        self._denied.add((verb, resource))

    def away(self, seconds: float) -> None:
        """Answers nothing but 503 for so long."""
        self._away_until = time.monotonic() + seconds
        self.cut()

    # The API.

    def refused(self, asked: Asked, token: str) -> Said | None:
        """None: the request is let in."""
        with self._news:
            self.asked.append(asked)
            if time.monotonic() < self._away_until:
                return _refusal(503, "ServiceUnavailable", "the server is currently unable to handle the request")
            if token not in self.tokens:
                return _refusal(401, "Unauthorized", "Unauthorized")
            if (asked.verb, asked.resource) in self._denied:
                return _refusal(403, "Forbidden", _forbidden(asked))
            if unknown := set(asked.query) - _KNOWN[asked.verb]:
                return _refusal(400, "BadRequest", f"unknown parameters {sorted(unknown)}")
            if asked.resource == "trainjobs" and not self.knows_trainer:
                return _refusal(404, "NotFound", "the server could not find the requested resource")
            return None

    def answer(self, asked: Asked, body: bytes) -> Said:
        with self._news:
            return self._answer(asked, body)

    def _answer(self, asked: Asked, body: bytes) -> Said:
        if asked.resource == "pods":
            items = [pod for pod in self.pods.values() if _selected(pod, asked.query)]
            return Said(200, _listed("PodList", "v1", items, self._version))
        if asked.verb == "create":
            return self._create(json.loads(body), strict=asked.query.get("fieldValidation") == "Strict")
        if asked.verb == "list":
            items = [job for job in self.jobs.values() if _selected(job, asked.query)]
            return Said(200, _listed("TrainJobList", "trainer.kubeflow.org/v1alpha1", items, self._version))
        job = self.jobs.get(asked.name)
        if job is None:
            return _refusal(404, "NotFound", f'trainjobs.trainer.kubeflow.org "{asked.name}" not found')
        if asked.verb == "delete":
            foreground = json.loads(body or b"{}").get("propagationPolicy", asked.query.get("propagationPolicy"))
            self._delete(job, slowly=foreground == "Foreground")
        return Said(200, job)

    def _create(self, job: dict[str, Any], *, strict: bool) -> Said:
        if wrong := [*_unknown(job), *_impossible(job)]:
            assert strict, f"dropped without a word: {wrong}"
            return _refusal(400, "BadRequest", f"TrainJob in version v1alpha1 cannot be handled: {'; '.join(wrong)}")
        name = job["metadata"]["name"]
        if name in self.jobs:
            said = f'trainjobs.trainer.kubeflow.org "{name}" already exists'
            return _refusal(409, "AlreadyExists", said)
        job["metadata"] |= {"uid": uuid.uuid4().hex, "namespace": NAMESPACE}
        job["spec"].setdefault("suspend", "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"])  # Kueue's webhook
        self.jobs[name] = job
        self._tell("ADDED", job)
        return Said(201, job)

    def _delete(self, job: dict[str, Any], *, slowly: bool) -> None:
        if slowly and self.removal_seconds:
            job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            threading.Timer(self.removal_seconds, self.delete, [job["metadata"]["name"]]).start()
        else:
            self.delete(job["metadata"]["name"])

    def stream(self, asked: Asked) -> Iterator[bytes]:
        """A watch, or a log."""
        return self._watched(asked) if asked.verb == "watch" else self._logged(asked)

    def _watched(self, asked: Asked) -> Iterator[bytes]:
        seen, cuts = int(asked.query["resourceVersion"]), self._cuts
        until = time.monotonic() + float(asked.query["timeoutSeconds"])
        while time.monotonic() < until:
            with self._news:
                if seen < self._oldest:
                    gone = _refusal(410, "Expired", f"too old resource version: {seen} ({self._oldest})").tree
                    yield json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n"
                    return
                news = [e for e in self._events if e.version > seen and _selected(e.job, asked.query)]
                if not news:
                    if self._cuts > cuts:
                        return
                    self._news.wait(timeout=0.5)
                    continue
            for event in news:
                seen = event.version
                yield json.dumps({"type": event.kind, "object": event.job}).encode() + b"\n"

    def _logged(self, asked: Asked) -> Iterator[bytes]:
        pod, cuts, told = asked.name, self._cuts, None
        container = self._container_of(pod)
        follow = asked.query.get("follow", "").lower() == "true"
        while True:
            with self._news:
                lines = self._logs.get(container, [])
                if told is None:
                    told = max(0, len(lines) - int(asked.query.get("tailLines", 10**9)))
                new = lines[told:]
                told += len(new)
                running = self._container_of(pod) == container and self._runs(pod)
                over = not new and (not follow or not running or self._cuts > cuts)
                if not new and not over:
                    self._news.wait(timeout=0.5)
            for line in new:
                yield line.encode() + b"\n"
            if over:
                return

    def _container_of(self, pod: str) -> tuple[str, int]:
        status = self.pods[pod]["status"]["containerStatuses"][0] if pod in self.pods else {"restartCount": -1}
        return pod, status["restartCount"]

    def _runs(self, pod: str) -> bool:
        return pod in self.pods and "running" in self.pods[pod]["status"]["containerStatuses"][0]["state"]

    def _pods_of(self, node: int) -> list[str]:
        key = "batch.kubernetes.io/job-completion-index"
        return [name for name, pod in self.pods.items() if pod["metadata"]["labels"][key] == str(node)]

    def _end(self, kind: str, reason: str, said: str) -> None:
        job = self.job()
        with self._news:
            for node in {
                pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in self.pods.values()
            }:
                if "running" in self.pods[self._pods_of(int(node))[-1]]["status"]["containerStatuses"][0]["state"]:
                    self.end_pod(int(node), 0, "Completed")
            condition = {"type": kind, "status": "True", "reason": reason, "message": said}
            self._change(job, {"conditions": [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]})

    def _change(self, job: dict[str, Any], status: Mapping[str, Any]) -> None:
        job["spec"]["suspend"] = False
        job["status"] = {**job.get("status", {}), **status}
        self._tell("MODIFIED", job)

    def _tell(self, kind: str, job: dict[str, Any]) -> None:
        self._version += 1
        job["metadata"]["resourceVersion"] = str(self._version)
        self._events.append(Event(self._version, kind, copy.deepcopy(job)))
        self._news.notify_all()


def _handler(server: KubeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def do_DELETE(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked = _asked(self.command, self.path)
            said = server.refused(asked, self.headers.get("Authorization", "").removeprefix("Bearer "))
            if said is None and asked.verb in ("watch", "log"):
                self._stream(asked)
                return
            said = said or server.answer(asked, body)
            content = json.dumps(said.tree).encode()
            self.send_response(said.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, asked: Asked) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json" if asked.verb == "watch" else "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for line in server.stream(asked):
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                self.wfile.write(b"0\r\n\r\n")
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

    return Handler


def _asked(method: str, target: str) -> Asked:
    url = urlsplit(target)
    query = dict(parse_qsl(url.query))
    if url.path.startswith(PODS):
        name, _, sub = url.path.removeprefix(PODS).strip("/").partition("/")
        return Asked("log" if sub == "log" else "list", "pods/log" if sub else "pods", name, query)
    assert url.path.startswith(JOBS), url.path
    name = url.path.removeprefix(JOBS).strip("/")
    verb = {"POST": "create", "DELETE": "delete", "GET": "get" if name else "list"}[method]
    if query.get("watch", "").lower() == "true":
        verb = "watch"
    return Asked(verb, "trainjobs", name, query)


def _refusal(status: int, reason: str, said: str) -> Said:
    tree = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": said}
    return Said(status, {**tree, "reason": reason, "code": status})


def _forbidden(asked: Asked) -> str:
    resource = asked.resource.partition("/")[0]
    full = "trainjobs.trainer.kubeflow.org" if resource == "trainjobs" else resource
    who = f"system:serviceaccount:{NAMESPACE}:isr-dpo-run"
    return f'{full} is forbidden: User "{who}" cannot {asked.verb} resource "{resource}" in the namespace "{NAMESPACE}"'


def _listed(kind: str, version: str, items: list[dict[str, Any]], at: int) -> dict[str, Any]:
    return {"kind": kind, "apiVersion": version, "metadata": {"resourceVersion": str(at)}, "items": items}


def _selected(tree: Mapping[str, Any], query: Mapping[str, str]) -> bool:
    fields = dict(part.split("=") for part in query.get("fieldSelector", "").split(",") if part)
    labels = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
    assert fields.keys() <= {"metadata.name"}, fields
    metadata = tree["metadata"]
    named = fields.get("metadata.name", metadata["name"]) == metadata["name"]
    return named and labels.items() <= metadata["labels"].items()


def _container(state: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "node",
        "image": "i",
        "imageID": "i",
        "ready": "running" in state,
        "restartCount": 0,
        "state": state,
    }


def _unknown(job: Mapping[str, Any]) -> list[str]:
    """Fields that Kubeflow Trainer's models do not know."""
    parsed = TrainerV1alpha1TrainJob.from_dict(dict(job))
    assert parsed is not None
    return [f'unknown field "{path}"' for path in _lost(job, json.loads(parsed.to_json()), "")]


def _lost(sent: Any, kept: Any, path: str) -> Iterator[str]:
    if isinstance(sent, Mapping) and isinstance(kept, Mapping):
        for key, value in sent.items():
            here = f"{path}.{key}".lstrip(".")
            if key in kept:
                yield from _lost(value, kept[key], here)
            else:
                yield here
    elif isinstance(sent, list) and isinstance(kept, list):
        for number, (value, left) in enumerate(zip(sent, kept, strict=True)):
            yield from _lost(value, left, f"{path}[{number}]")


def _impossible(job: Mapping[str, Any]) -> Iterator[str]:
    """What the TrainJob's definition and Kubeflow Trainer's webhook refuse."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name):
        yield f"metadata.name {name!r}"
    for key, value in job["metadata"]["labels"].items():
        if not re.fullmatch(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value):
            yield f"label {key} {value!r}"
    if len(trainer["args"]) > 128 or any(len(argument) > 65536 for argument in trainer["args"]):
        yield "spec.trainer.args"
    if reserved := RESERVED & {given["name"] for given in trainer["env"]}:
        yield f"reserved envs {sorted(reserved)}"
    if job["spec"].get("activeDeadlineSeconds", 1) < 1:
        yield "spec.activeDeadlineSeconds"
    for patch in job["spec"].get("runtimePatches", []):
        for patched in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            pod = patched["template"]["spec"]["template"]
            if patched["name"] != "node" or set(pod["metadata"]) > {"labels", "annotations"}:
                yield "runtimePatches"
            if any("env" in container or container["name"] != "node" for container in pod["spec"]["containers"]):
                yield "must not have envs for the node container"
