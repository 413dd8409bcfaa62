"""A double of Kubeflow Pipelines' API server on loopback, with state: experiments and runs.

Every body is parsed by the models of `kfp_server_api`, the package in it by those of KFP and kfp-kubernetes; what these
do not know is refused, as are parameters above KFP's limit. A test plays the controller with `tell`.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
PARAMETER_BYTES = 10_000


class Refused(Exception):
    def __init__(self, status: int, said: str) -> None:
        super().__init__(said)
        self.status = status


class Asked(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]


class KfpServer:
    """As a context it runs; `url` is where."""

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.asked: list[Asked] = []
        self.refuse: dict[str, int] = {}
        """Statuses by `METHOD /path`, of requests that are refused."""
        self.lose_answers_to: set[str] = set()
        """`METHOD /path` of requests that are done and whose answer never arrives."""

    def __enter__(self) -> KfpServer:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def tell(self, number: int, state: str, tasks: Mapping[str, str], *, error: str | None = None) -> None:
        """The run of that number, and its tasks by name, are now in these states."""
        run = self.runs[number]
        run["state"] = state
        run["run_details"] = {"task_details": [{"display_name": n, "state": s} for n, s in tasks.items()]}
        if error:
            run["error"] = {"code": 13, "message": error}

    def answer(self, asked: Asked, body: bytes, authorization: str) -> dict[str, Any]:
        self.asked.append(asked)
        path = asked.path.removeprefix(API)
        if self.token is not None and authorization != f"Bearer {self.token}":
            raise Refused(401, "Request header error: there is no valid user identity: token has expired")
        if status := self.refuse.get(f"{asked.method} {path}"):
            raise Refused(status, "refused by the test")
        if path == "/healthz":
            return {"multi_user": True}
        if path == "/experiments":
            if asked.method == "GET":
                return {"experiments": _selected(self.experiments, asked.query)}
            made = _parsed(json.loads(body), "V2beta1Experiment")
            self.experiments.append({**made, "experiment_id": uuid.uuid4().hex})
            return self.experiments[-1]
        if path == "/runs":
            if asked.method == "GET":
                return _page(self.runs, asked.query)
            return self._run(_parsed(json.loads(body), "V2beta1Run"))
        found = [run for run in self.runs if path == f"/runs/{run['run_id']}"]
        if asked.method != "GET" or not found:
            raise Refused(404, f"{asked.method} {asked.path} not found")
        return _shown(found[0])

    def _run(self, made: dict[str, Any]) -> dict[str, Any]:
        if made["experiment_id"] not in {each["experiment_id"] for each in self.experiments}:
            raise Refused(404, "no such experiment")
        parameters = made["runtime_config"]["parameters"]
        if len(json.dumps(parameters).encode()) > PARAMETER_BYTES:
            raise Refused(400, "The input parameters length exceeds the maximum size of 10000")
        known = check_package(made["pipeline_spec"])
        if set(parameters) - set(known) or [
            n for n, p in known.items() if "defaultValue" not in p and n not in parameters
        ]:
            raise Refused(400, "parameters do not fit the pipeline")
        self.runs.append(
            {**made, "run_id": str(uuid.uuid4()), "state": "PENDING", "created_at": "2026-01-01T00:00:00Z"}
        )
        return self.runs[-1]


def check_package(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The package's parameters, once KFP's own messages have parsed all of it."""
    if set(tree) != {"pipeline_spec", "platform_spec"}:
        raise Refused(400, f"a package has a pipeline_spec and a platform_spec, this has {sorted(tree)}")
    try:
        json_format.ParseDict(tree["pipeline_spec"], pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(tree["platform_spec"], pipeline_spec_pb2.PlatformSpec())
        pods = tree["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        for pod in pods.values():
            json_format.ParseDict(pod, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    except json_format.ParseError as error:
        raise Refused(400, str(error)) from error
    parameters: Mapping[str, Any] = tree["pipeline_spec"]["root"]["inputDefinitions"]["parameters"]
    return parameters


def _parsed(tree: dict[str, Any], model: str) -> dict[str, Any]:
    """The body of a request, unless it has fields that the model does not know."""
    if unknown := [*_unknown(tree, model)]:
        raise Refused(400, f"unknown fields {unknown}")
    return tree


def _unknown(tree: Any, model: str) -> Iterator[str]:
    if model.startswith(("list[", "dict(")) or not hasattr(kfp_server_api, model) or not isinstance(tree, dict):
        return
    known = getattr(kfp_server_api, model)
    if not hasattr(known, "attribute_map"):
        return
    types = {known.attribute_map[name]: kind for name, kind in known.openapi_types.items()}
    for key, value in tree.items():
        if key not in types:
            yield f"{model}.{key}"
        else:
            yield from _unknown(value, types[key])


def _shown(run: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in run.items() if key != "pipeline_spec"}


def _page(runs: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    """20 runs, or page_size, 200 at most. A token holds its list's filter, so it stands alone: with an IN in it, KFP's
    server finds even the same filter to be another one."""
    token, size = query.get("page_token"), min(int(query.get("page_size") or 20), 200)
    if token and (query.get("filter") or query.get("sort_by")):
        raise Refused(400, "page token does not match the supplied sort by and/or filtering criteria")
    start, wanted = json.loads(token) if token else (0, query.get("filter"))
    found = _selected(runs, {**query, "filter": wanted})
    more = {"next_page_token": json.dumps([start + size, wanted])} if start + size < len(found) else {}
    return {"runs": [_shown(run) for run in found[start : start + size]], "total_size": len(found), **more}


def _selected(items: list[dict[str, Any]], query: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = {}
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        equals = predicate["operation"] in ("EQUALS", 1)  # of the enumeration: by name, or as KFP's client has it
        assert equals or predicate["operation"] == "IN"
        wanted[predicate["key"]] = [predicate["stringValue"]] if equals else predicate["stringValues"]["values"]
    for key in ("experiment_id", "namespace"):
        if query.get(key) and any(key in item for item in items):
            wanted[key] = [query[key]]
    return [item for item in items if all(item.get(key) in values for key, values in wanted.items())]


def _handler(server: KfpServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            asked = Asked(self.command, url.path, {k: v[-1] for k, v in parse_qs(url.query).items()})
            status, tree = 200, {}
            try:
                tree = server.answer(asked, body, self.headers.get("Authorization", ""))
            except Refused as error:
                status, tree = error.status, {"error": str(error), "code": 13, "message": str(error)}
            lost = f"{asked.method} {url.path.removeprefix(API)}"
            if lost in server.lose_answers_to:
                server.lose_answers_to.discard(lost)
                self.close_connection = True
                return
            content = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
