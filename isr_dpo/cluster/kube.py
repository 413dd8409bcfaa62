"""The door to a cluster: its API opened once, and its errors told in our words, once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tenacity
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from isr_dpo.errors import ClusterRefused, IsrDpoError, KeyRefused, OutsideError

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TIMEOUTS = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""
PATIENCE_SECONDS = 60.0
"""How long a request is tried again while the API server is away or overloaded."""


@dataclass
class Cluster:
    """One namespace of a cluster."""

    namespace: str
    api: Any = field(repr=False)
    """`kubernetes.client.ApiClient`, its token renewed when it is refused."""

    @property
    def objects(self) -> Any:
        """Custom resources."""
        return client.CustomObjectsApi(self.api)

    @property
    def core(self) -> Any:
        """Pods and what else is Kubernetes' own."""
        return client.CoreV1Api(self.api)

    def ask(
        self, verb: str, resource: str, request: Callable[[], Any], *, patience_seconds: float | None = None
    ) -> Any:
        """What `request` returns, tried again while the server is away. `verb` and `resource` as RBAC names them, such
        as `create` and `trainjobs.trainer.kubeflow.org`. It looks up `objects` or `core` itself, to be sent with a new
        token where the old one has run out.

        Raises:
            KeyRefused: no valid token.
            ClusterRefused: not allowed, or an object that the cluster does not take.
            OutsideError: the server stays away.
            ApiException: 404, 409 or 410, which mean something to the caller.
        """
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_passes),
            wait=tenacity.wait_exponential_jitter(initial=0.2, max=10),
            stop=tenacity.stop_after_delay(patience_seconds or PATIENCE_SECONDS),
            reraise=True,
        )
        try:
            return retrying(self._sent, request)
        except (ApiException, HTTPError) as error:
            raise self.explained(error, verb, resource) from error

    def _sent(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except ApiException as error:
            if error.status != 401:
                raise
            self.api = _api()  # a token on disk may be newer than the one in memory
            return request()

    def explained(self, error: ApiException | HTTPError, verb: str, resource: str) -> IsrDpoError | ApiException:
        """The error in our words; 404, 409 and 410 as they are."""
        if not isinstance(error, ApiException) or not error.status:
            return OutsideError(f"the cluster at {self.api.configuration.host} does not answer: {_short(error)}")
        what, said = f"{verb} {resource} in namespace {self.namespace}", message(error)
        if error.status in (404, 409, 410):
            return error
        if error.status == 401:
            return KeyRefused(
                f"the cluster at {self.api.configuration.host} refuses the token (expired, or another cluster's) on "
                f"{what}: log in again; in a pod, whether its service account still exists: kubectl get serviceaccounts"
            )
        if error.status == 403:
            return ClusterRefused(
                f"the cluster does not let this account {what}: {said}. The Roles in manifests/base/roles.yaml allow "
                f"what a run needs; to see: kubectl auth can-i {verb} {resource} -n {self.namespace}"
            )
        if error.status == 429 or error.status >= 500:
            return OutsideError(f"the cluster could not {what}: {error.status}, {said}")
        return ClusterRefused(f"the cluster refuses to {what}: {error.status}, {said}")


def open_cluster(namespace: str | None = None) -> Cluster:
    """In a pod the cluster and namespace it runs in, by its service account; elsewhere those of the kubeconfig's
    current context.

    Raises:
        ClusterRefused: neither a service account's token nor a kubeconfig is there.
    """
    return Cluster(namespace or _namespace(), _api())


def message(error: ApiException) -> str:
    """What the server says about a refusal."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason or error.status)


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and NAMESPACE_FILE.exists()


def _api() -> Any:
    settings = client.Configuration()
    try:
        if _in_pod():
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
    except config.ConfigException as error:
        raise ClusterRefused(
            f"no cluster to ask: {error}. In a pod, mount its service account's token; elsewhere, set KUBECONFIG"
        ) from error
    settings.retries = False  # `ask` tries again
    return client.ApiClient(settings)


def _namespace() -> str:
    if _in_pod():
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    try:
        _, active = config.list_kube_config_contexts(os.environ.get("KUBECONFIG"))
    except config.ConfigException:
        return "default"
    return str(active["context"].get("namespace", "default"))


def _passes(error: BaseException) -> bool:
    """Whether it may pass by itself."""
    if isinstance(error, ApiException):
        return not error.status or error.status == 429 or error.status >= 500
    return isinstance(error, HTTPError)


def _short(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error)
