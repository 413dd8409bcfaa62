"""What the pods of a TrainJob say while it is followed: node 0's log, and what keeps a pod from starting."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from isr_dpo.cluster.kube import TIMEOUTS, Cluster
from isr_dpo.cluster.train_job import NODE
from isr_dpo.errors import IsrDpoError

log = logging.getLogger("isr_dpo")

LAST_LINES = 25
POLL_SECONDS = 2.0
_INDEX = "batch.kubernetes.io/job-completion-index"
_FIRST_LINES = 20  # of a log that was begun before it is followed


class NodeLog:
    """Follows the pods of the TrainJob `name` from a thread of its own, until it is closed. Losing the log is no
    failure: what becomes of the job is read from the job."""

    def __init__(self, cluster: Cluster, name: str, on_line: Callable[[str], None]) -> None:
        self._cluster, self._name, self._on_line = cluster, name, on_line
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._said: dict[str, str] = {}
        self._after = ""
        self._read_out: set[str] = set()
        """Containers, by pod and restarts, that had ended when they were read."""
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="node-log", daemon=True)
        self._thread.start()

    def close(self, *, patience_seconds: float) -> None:
        """Waits this long at most for lines that are still under way."""
        self._closed.set()
        self._thread.join(patience_seconds)

    def ends(self) -> list[str]:
        """How the containers of failed pods ended, as far as the pods are still there."""
        found = []
        for pod in self._pods():
            status = _status(pod)
            for state in (status.state, status.last_state) if status else ():
                end = state and state.terminated
                if end and end.exit_code:
                    found.append(f"node {_number(pod)}: exit code {end.exit_code} ({end.reason or 'Error'})")
        return sorted(set(found))

    def _work(self) -> None:
        while True:
            closing = self._closed.is_set()
            try:
                pods = self._pods()
                self._tell_waiting(pods)
                for pod in pods:
                    if _number(pod) == "0":
                        self._read_container(pod)
            except (ApiException, HTTPError, IsrDpoError) as error:
                log.debug("%s: its pods cannot be read just now: %s", self._name, error)
            if closing:
                return
            self._closed.wait(POLL_SECONDS)

    def _pods(self) -> list[Any]:
        """Oldest first: a pod that failed may have a successor."""
        found = self._cluster.ask(
            "list",
            "pods",
            lambda: self._cluster.core.list_namespaced_pod(
                self._cluster.namespace,
                label_selector=f"jobset.sigs.k8s.io/jobset-name={self._name}",
                _request_timeout=TIMEOUTS,
            ),
        )
        return sorted(found.items, key=lambda pod: str(pod.metadata.creation_timestamp))

    def _tell_waiting(self, pods: list[Any]) -> None:
        for pod in pods:
            why = _waits_for(pod)
            if why and self._said.get(pod.metadata.name) != why:
                log.info("node %s waits: %s", _number(pod), why)
            self._said[pod.metadata.name] = why

    def _read_container(self, pod: Any) -> None:
        status = _status(pod)
        if status is None or not (status.state.running or status.state.terminated):
            return
        container = f"{pod.metadata.name}/{status.restart_count}"
        if container not in self._read_out:
            self._read(pod.metadata.name)
            if status.state.terminated:
                self._read_out.add(container)

    def _read(self, pod: str) -> None:
        """All new lines, until the pod ends or the stream breaks. Each carries its time, by which those that were read
        before are known."""
        began: dict[str, int] = {} if self._after else {"tail_lines": _FIRST_LINES}
        response = self._cluster.core.read_namespaced_pod_log(
            pod,
            self._cluster.namespace,
            container=NODE,
            follow=not self._closed.is_set(),
            timestamps=True,
            _preload_content=False,
            _request_timeout=(TIMEOUTS[0], None),
            **began,
        )
        try:
            for stamp, line in _lines(response):
                if stamp > self._after:
                    self._after = stamp
                    self.last.append(line)
                    self._on_line(line)
        finally:
            response.close()
            response.release_conn()


def _lines(response: Any) -> Iterator[tuple[str, str]]:
    """RFC 3339 time and text. Of two lines of one nanosecond, one would be lost: kubelet gives each its own."""
    rest = b""
    for chunk in response.stream(amt=None, decode_content=False):
        *whole, rest = (rest + chunk).split(b"\n")
        for raw in whole:
            stamp, _, text = raw.decode(errors="replace").partition(" ")
            yield stamp, text


def _number(pod: Any) -> str:
    labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
    return str(labels.get(_INDEX, annotations.get(_INDEX, "?")))


def _status(pod: Any) -> Any | None:
    """Of the container that trains."""
    return next((status for status in pod.status.container_statuses or [] if status.name == NODE), None)


def _waits_for(pod: Any) -> str:
    """What keeps a pod from running, in Kubernetes' words; empty where nothing does."""
    status = _status(pod)
    waiting = status and status.state.waiting
    if waiting and waiting.reason not in (None, "ContainerCreating"):
        return f"{waiting.reason}: {waiting.message or ''}".strip(": ")
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{condition.reason}: {condition.message or ''}".strip(": ")
    return ""
