"""A registered model's versions, by number, alias or run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr_dpo.errors import RecipeError
from isr_dpo.mlflow_client import open_client, translated
from isr_dpo.tracking import PREFIX

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
BEST = "best-of-run"
_PAGE = 1000
_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class Version:
    """A version of a registered model; `tags` are this project's, without their prefix."""

    name: str
    number: str
    source: str
    tags: Mapping[str, str]

    @property
    def run_uri(self) -> str:
        return self._tag("run_uri")

    @property
    def policy(self) -> int:
        return int(self._tag("policy"))

    def _tag(self, key: str) -> str:
        """Raises RecipeError: a version that no run of ours registered."""
        if key not in self.tags:
            raise RecipeError(
                f"{self.name} version {self.number} has no tag {PREFIX}{key}: it was not registered by `isr-dpo "
                "register`, so nobody knows which run's answers are its own"
            )
        return self.tags[key]


def source_of(model: str, *, uri: str) -> str:
    """Where the files of `models:/NAME@ALIAS` or `models:/NAME/VERSION` lie: the policy's URI.

    Raises:
        RecipeError: not of that form, or no such model, version or alias.
        OutsideError: MLflow is away.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise RecipeError(f"{model!r} names no registered model; accepted: models:/NAME@ALIAS, models:/NAME/VERSION")
    client = open_client(uri, create=False)
    with translated(uri):
        return find(client, match["name"], version=match["version"], alias=match["alias"] or "").source


def find(client: Any, name: str, *, version: str | None, alias: str) -> Version:
    """The version of that number or, without one, of that alias. Raises RecipeError: there is none."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
        if version is not None:
            return _version(client.get_model_version(name, version))
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        what = f"registered model {name!r}" if version is None else f"version {version} of {name!r}"
        raise RecipeError(f"MLflow has no {what}") from error
    found = by_alias(client, name, alias)
    if found is None:
        raise RecipeError(f"{name!r} has no alias {alias!r}; it has {sorted(model.aliases) or 'none'}")
    return found


def by_alias(client: Any, name: str, alias: str) -> Version | None:
    from mlflow.exceptions import MlflowException

    try:
        return _version(client.get_model_version_by_alias(name, alias))
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
        return None


def of_run(client: Any, name: str, run_uri: str) -> list[Any]:
    """MLflow's own objects of this run's versions, oldest first."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(f"name = '{name}'", max_results=_PAGE, page_token=token or None)
        found += [v for v in page if v.tags.get(PREFIX + "run_uri") == run_uri]
        token = page.token or None
    return sorted(found, key=lambda v: int(v.version))


def place(uri: str) -> str:
    """`uri` as MLflow keeps it: an object store's as it is, a path absolute."""
    path = uri.removeprefix("file://")
    return path if "://" in path else str(Path(path).absolute())


def _version(found: Any) -> Version:
    tags = {key.removeprefix(PREFIX): value for key, value in found.tags.items() if key.startswith(PREFIX)}
    return Version(str(found.name), str(found.version), str(found.source), tags)
