"""One TrainJob from its creation to its end, by a process that may be killed and started again.

The object's name comes from the run and the step, so a retried step finds the job of the attempt before it and goes on
following it. Whoever is told to stop (SIGTERM, Ctrl-C) takes the job along; one that is killed leaves it to its
successor, or to the job's own deadline. A job that has ended is removed: its results are in the store, its last words
in this process's log, and Kubeflow Trainer may start a failed one again when parts of it are cleaned up (kubeflow/
trainer 3737).
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kubernetes.client.exceptions import ApiException
from kubernetes.watch import Watch
from urllib3.exceptions import HTTPError

from isr_dpo.cluster.kube import TIMEOUTS, Cluster, message
from isr_dpo.cluster.node_log import NodeLog
from isr_dpo.cluster.train_job import DIGEST, GROUP, PLURAL, RESOURCE, VERSION
from isr_dpo.errors import ClusterRefused, IsrDpoError, OutsideError

log = logging.getLogger("isr_dpo")

WATCH_SECONDS = 30
"""A watch is opened anew this often: an idle connection may be cut without a word, and `check` may know better."""
AWAY_SECONDS = 900.0
"""A control plane may be away this long, while it is upgraded, without a training being given up."""
REMOVAL_SECONDS = 300.0
_LAST_WORDS_SECONDS = 10.0
_ENDS = ("Complete", "Failed")


def run(
    cluster: Cluster,
    job: Mapping[str, Any],
    *,
    on_line: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Creates `job`, or finds it running, and follows it until it is complete; then removes it.

    Args:
        on_line: called with each line that node 0 prints, from another thread.
        check: called now and then. What it raises ends the job: Kubernetes starts failed pods again and again, whatever
            they failed of.

    Raises:
        OutsideError: it failed, with the reason and node 0's last lines; it was deleted by others; or the API server
            stays away.
        ClusterRefused, KeyRefused: the cluster does not allow it, or another's object has the name.
    """
    _TrainJob(cluster, job, on_line, check).run()


class _TrainJob:
    def __init__(
        self, cluster: Cluster, job: Mapping[str, Any], on_line: Callable[[str], None], check: Callable[[], None]
    ) -> None:
        self._cluster, self._job, self._on_line, self._check = cluster, job, on_line, check
        self._name: str = job["metadata"]["name"]
        self._uid = ""
        self._shown = ""

    def run(self) -> None:
        with _sigterm_raises():
            try:
                self._uid = self._attach()["metadata"]["uid"]
                self._follow()
            except (KeyboardInterrupt, SystemExit):
                log.warning("told to stop: the TrainJob %s is deleted", self._name)
                self._remove()
                raise

    def _attach(self) -> dict[str, Any]:
        """The object, new or found. One that ended while nobody looked makes room for a new one."""
        while True:
            try:
                made: dict[str, Any] = self._cluster.ask("create", RESOURCE, self._create)
            except ApiException as error:
                if error.status == 404:
                    raise ClusterRefused(
                        f"the cluster knows no {RESOURCE} of {VERSION}: training on several nodes needs Kubeflow "
                        "Trainer 2.2 or newer"
                    ) from error
                if error.status != 409:
                    raise ClusterRefused(f"the cluster cannot create {self._name}: {message(error)}") from error
            else:
                log.info("TrainJob %s: created in namespace %s", self._name, self._cluster.namespace)
                return made
            standing = self._standing()
            if standing is None:
                continue
            self._refuse_foreign(standing)
            if _ended(standing) is None and "deletionTimestamp" not in standing["metadata"]:
                log.info("TrainJob %s: going on with the one that an earlier attempt created", self._name)
                return standing
            log.info("TrainJob %s: an earlier attempt's has ended; it makes room for a new one", self._name)
            self._remove(wait=True)

    def _refuse_foreign(self, standing: Mapping[str, Any]) -> None:
        wanted = self._job["metadata"]["annotations"][DIGEST]
        found = (standing["metadata"].get("annotations") or {}).get(DIGEST)
        if found != wanted:
            raise ClusterRefused(
                f"a TrainJob {self._name} stands in namespace {self._cluster.namespace} that asks for something else "
                f"({DIGEST}: {str(found)[:12]}, here {wanted[:12]}). Look at it, and where nobody needs it: kubectl "
                f"delete trainjob {self._name} -n {self._cluster.namespace}"
            )

    def _follow(self) -> None:
        """Returns when the job is complete."""
        words = NodeLog(self._cluster, self._name, self._on_line)
        try:
            for state in self._states():
                if state is None or state["metadata"]["uid"] != self._uid:
                    raise OutsideError(
                        f"the TrainJob {self._name} was deleted while it trained, and not by this step. Its "
                        "checkpoints stand; run again"
                    )
                self._show(state)
                if (end := _ended(state)) is not None:
                    words.close(patience_seconds=_LAST_WORDS_SECONDS)
                    failure = None if end["type"] == "Complete" else self._failure(end, words)
                    self._remove()
                    if failure is not None:
                        raise failure
                    return
                self._give_up_where_told()
        finally:
            words.close(patience_seconds=0)

    def _give_up_where_told(self) -> None:
        try:
            self._check()
        except IsrDpoError:
            self._remove()
            raise

    def _states(self) -> Iterator[dict[str, Any] | None]:
        """The object now, and whenever it changes; None: it is gone. Every watch begins with a list, from whose version
        it goes on: so it makes no difference whether one was cut, timed out, or fell behind (410)."""
        where = (GROUP, VERSION, self._cluster.namespace, PLURAL)
        only = {"field_selector": f"metadata.name={self._name}"}
        while True:
            listed = self._cluster.ask(
                "list",
                RESOURCE,
                lambda: self._cluster.objects.list_namespaced_custom_object(*where, **only, _request_timeout=TIMEOUTS),
                patience_seconds=AWAY_SECONDS,
            )
            yield next(iter(listed["items"]), None)
            try:
                for event in Watch().stream(
                    self._cluster.objects.list_namespaced_custom_object,
                    *where,
                    **only,
                    resource_version=listed["metadata"]["resourceVersion"],
                    timeout_seconds=WATCH_SECONDS,
                    _request_timeout=(TIMEOUTS[0], WATCH_SECONDS + TIMEOUTS[1]),
                ):
                    yield None if event["type"] == "DELETED" else event["object"]
            except (ApiException, HTTPError) as error:
                if isinstance(error, ApiException) and error.status == 403:
                    raise self._cluster.explained(error, "watch", RESOURCE) from error
                log.debug("%s: the watch ended: %s", self._name, error)
                time.sleep(0.2)

    def _show(self, state: Mapping[str, Any]) -> None:
        """A line where something changed."""
        status = state.get("status") or {}
        suspended = bool(state["spec"].get("suspend"))
        jobs = {job["name"]: job for job in status.get("jobsStatus") or []}
        active = any(job.get("active") for job in jobs.values())
        shown = "waits in its queue" if suspended else "runs" if active else "is being set up"
        if _ended(state) is None and shown != self._shown:
            log.info("TrainJob %s: %s", self._name, shown)
        self._shown = shown

    def _failure(self, condition: Mapping[str, Any], words: NodeLog) -> OutsideError:
        try:
            ends = words.ends()
        except (IsrDpoError, ApiException):
            ends = []
        why = ": ".join(part for part in (condition.get("reason"), condition.get("message")) if part)
        last = "\n".join(words.last) or "(none)"
        return OutsideError(
            f"the TrainJob {self._name} failed: {why}"
            + "".join(f"\n  {end}" for end in ends)
            + f"\nThe last lines of node 0:\n{last}"
        )

    def _create(self) -> Any:
        """An older Trainer would drop fields that it does not know, placement among them: it must refuse them."""
        return self._cluster.objects.create_namespaced_custom_object(
            GROUP,
            VERSION,
            self._cluster.namespace,
            PLURAL,
            dict(self._job),
            field_validation="Strict",
            _request_timeout=TIMEOUTS,
        )

    def _standing(self) -> dict[str, Any] | None:
        def get() -> Any:
            return self._cluster.objects.get_namespaced_custom_object(
                GROUP, VERSION, self._cluster.namespace, PLURAL, self._name, _request_timeout=TIMEOUTS
            )

        try:
            found: dict[str, Any] = self._cluster.ask("get", RESOURCE, get)
        except ApiException as error:
            if error.status == 404:
                return None
            raise ClusterRefused(f"the cluster cannot get {self._name}: {message(error)}") from error
        return found

    def _remove(self, *, wait: bool = False) -> None:
        """Deletes the object and all that it made; that it is gone already is fine. `wait`: until its pods are gone."""

        def delete() -> Any:
            return self._cluster.objects.delete_namespaced_custom_object(
                GROUP,
                VERSION,
                self._cluster.namespace,
                PLURAL,
                self._name,
                propagation_policy="Foreground" if wait else "Background",
                _request_timeout=TIMEOUTS,
            )

        with contextlib.suppress(ApiException):  # 404, 409: others delete it, too
            self._cluster.ask("delete", RESOURCE, delete)
        until = time.monotonic() + REMOVAL_SECONDS
        while wait and self._standing() is not None:
            if time.monotonic() > until:
                raise OutsideError(
                    f"the TrainJob {self._name} of an earlier attempt is still being removed; see what keeps it: "
                    f"kubectl describe trainjob {self._name} -n {self._cluster.namespace}"
                )
            time.sleep(0.5)


def _ended(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition that says how it ended."""
    for condition in (state.get("status") or {}).get("conditions") or []:
        if condition["type"] in _ENDS and condition["status"] == "True":
            return condition  # type: ignore[no-any-return]
    return None


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Kubernetes ends a pod by SIGTERM: here it raises SystemExit, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
