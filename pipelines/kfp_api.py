"""The door to Kubeflow Pipelines: its client, and its errors told in our words, once."""

import contextlib
import functools
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from isr_dpo.errors import ClusterRefused, KeyRefused, OutsideError

TOKEN, COOKIES = "KFP_TOKEN", "KFP_COOKIES"
TIMEOUT_SECONDS = 30.0
LIVE = ("PENDING", "RUNNING", "PAUSED", "CANCELING")
T = TypeVar("T")


class KfpApi:
    """One KFP. Who asks is said by KFP_TOKEN or KFP_COOKIES in the environment, or by the kubeconfig."""

    def __init__(self, host: str | None, namespace: str | None) -> None:
        self._host, self.namespace = host, namespace

    @functools.cached_property
    def _client(self) -> Any:
        return self.asked("answer", lambda: _open(self._host))

    def check(self) -> None:
        """Raises KeyRefused, ClusterRefused, OutsideError: it does not answer, or not to this caller."""
        from kfp_server_api import HealthzServiceApi

        asked = HealthzServiceApi(self._client._run_api.api_client).healthz_service_get_healthz
        self.asked("answer", lambda: asked(_request_timeout=TIMEOUT_SECONDS))
        self.asked("list runs", lambda: self._client.list_runs(page_size=1, namespace=self.namespace))

    def experiment(self, name: str) -> str | None:
        """The id of an experiment, None where there is none."""
        found = self.asked(
            f"look for experiment {name}",
            lambda: self._client._experiment_api.experiment_service_list_experiments(
                filter=_filter(_named(name)), **({"namespace": self.namespace} if self.namespace else {})
            ),
        )
        return str(found.experiments[0].experiment_id) if found.experiments else None

    def live_run(self, name: str) -> str | None:
        """The id of a run of this name that has not ended."""
        return next((str(run.run_id) for run in self._live(_named(name))), None)

    def live_at(self, run_uri: str) -> dict[str, str]:
        """Runs that go on at `run_uri`, id by name."""
        return {
            str(run.display_name): str(run.run_id)
            for run in self._live()
            if ((run.runtime_config and run.runtime_config.parameters) or {}).get("run_uri") == run_uri
        }

    def _live(self, *predicates: Mapping[str, Any]) -> Iterator[Any]:
        """Runs that have not ended, of all experiments. The server picks them: those that have ended cost nothing."""
        alive = {"operation": "IN", "key": "state", "stringValues": {"values": LIVE}}
        asked = {"filter": _filter(alive, *predicates)}
        while asked:
            page = functools.partial(self._client.list_runs, page_size=100, namespace=self.namespace, **asked)
            found = self.asked("list runs", page)
            yield from found.runs or []
            # alone: the token holds the filter, and KFP takes no IN beside it for the same
            asked = {"page_token": found.next_page_token} if found.next_page_token else {}

    def create_run(
        self,
        package: Path,
        parameters: Mapping[str, str],
        *,
        name: str,
        experiment: str,
        pipeline_root: str | None,
        service_account: str,
    ) -> str:
        """The id of a run of the package: the one that goes on under this name, or else a new one. A second submission
        of the same run starts nothing, nor does one whose answer was lost on the way."""
        if there := self.live_run(name):
            return there
        try:
            made = self.asked(
                f"create run {name}",
                lambda: self._client.create_run_from_pipeline_package(
                    str(package),
                    dict(parameters),
                    run_name=name,
                    experiment_name=experiment,
                    namespace=self.namespace,
                    pipeline_root=pipeline_root,
                    service_account=service_account,
                ),
            )
        except OutsideError as error:
            if not error.retry or not (there := self.live_run(name)):
                raise
            return there
        return str(made.run_id)

    def run(self, run_id: str) -> Any:
        """As KFP's server describes it now."""
        return self.asked(f"get run {run_id}", lambda: self._client.get_run(run_id))

    def link(self, run_id: str) -> str:
        """Its page."""
        return f"{self._client._get_url_prefix()}/#/runs/details/{run_id}"

    def asked(self, what: str, request: Callable[[], T]) -> T:
        """What `request` returns; what KFP's client prints is left out."""
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                return request()
        except ApiException as error:
            raise _explained(error, what) from error
        except HTTPError as error:
            raise OutsideError(
                f"Kubeflow Pipelines does not answer (to {what}): {error}. Name it with --host, or open a way to it: "
                "kubectl -n kubeflow port-forward service/ml-pipeline-ui 8080:80, then --host http://localhost:8080"
            ) from error


def _open(host: str | None) -> Any:
    import kfp

    class Client(kfp.Client):  # type: ignore[misc]
        """KFP's own asks for half a minute when it is opened, and logs every time."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return self._healthz_api.healthz_service_get_healthz(_request_timeout=TIMEOUT_SECONDS)

    with warnings.catch_warnings(action="ignore"):
        return Client(host=host, existing_token=os.environ.get(TOKEN), cookies=os.environ.get(COOKIES))


def _explained(error: Any, what: str) -> OutsideError:
    said = _message(error)
    if error.status in (401, 302):
        return KeyRefused(
            f"Kubeflow Pipelines refuses to {what}: the token is missing, wrong or has expired ({said}): log in again "
            f"and set {TOKEN} or {COOKIES}"
        )
    if error.status == 403:
        return ClusterRefused(
            f"Kubeflow Pipelines does not let this account {what}: {said}. In multi-user mode, --namespace must be a "
            "profile that you contribute to"
        )
    if error.status in (0, None, 429) or error.status >= 500:
        return OutsideError(f"Kubeflow Pipelines could not {what}: {error.status}, {said}")
    return ClusterRefused(f"Kubeflow Pipelines refuses to {what}: {error.status}, {said}")


def _message(error: Any) -> str:
    try:
        tree = json.loads(error.body)
        return str(tree.get("error") or tree["message"])
    except (TypeError, ValueError, KeyError, AttributeError):
        return str(error.reason or error.status)


def _named(name: str) -> dict[str, str]:
    return {"operation": "EQUALS", "key": "display_name", "stringValue": name}


def _filter(*predicates: Mapping[str, Any]) -> str:
    return json.dumps({"predicates": predicates})
