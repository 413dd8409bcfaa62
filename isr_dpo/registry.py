"""The registry: every policy a version of one registered model in MLflow.

Aliases, not stages: `challenger` is the best policy of the newest run by dev accuracy and moves by itself; `champion`
is what users get and moves only by `promote` and `rollback`; `previous` is the champion before. Weights stay where the
run wrote them: a version's source is the policy's URI, and the small `MLmodel` file among its files lets
`mlflow.pyfunc.load_model("models:/NAME@champion")` load it from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.errors import GuardTripped, RecipeError
from isr_dpo.mlflow_client import is_database, open_client, tracking_uri, translated
from isr_dpo.tracking import PREFIX

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"
BEST = "best-of-run"
_PAGE = 1000
_MODEL = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


@dataclass(frozen=True)
class Candidate:
    """A policy to register. Digests are manifest digests; `grader` names who made the figures (as evaluate's
    protocol.json does) and `dev_digest` what they were made on; both are part of what makes two accuracies comparable.
    `dev_accuracy` is None while the evaluation is pending."""

    run_uri: str
    index: int
    uri: str
    digest: str
    dataset_digest: str
    dev_digest: str
    grader: str
    dev_accuracy: float | None
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Registered:
    """A version of the registered model; `best` where it is its run's best by dev accuracy, the challenger."""

    name: str
    version: str
    best: bool


@dataclass(frozen=True)
class Promotion:
    """What `promote` and `rollback` did, or with `dry_run` would do. Versions are numbers as text."""

    name: str
    champion: str
    previous: str | None
    reason: str
    done: bool


def check_source(recipe: Recipe, run_uri: str) -> None:
    """For the preflight. Raises RecipeError where MLflow would refuse the run's policies: a server accepts no local
    path as a model's source."""
    uri = tracking_uri(recipe)
    if not is_database(uri) and _source(run_uri).startswith("/"):
        raise RecipeError(
            f"tracking.uri is the MLflow server {uri}, which refuses models from a local path such as {run_uri}: "
            "use an s3:// run URI, or a database such as sqlite:///runs/mlflow.db as tracking.uri"
        )


def register(recipe: Recipe, candidate: Candidate, *, tracking_run_id: str | None = None) -> Registered:
    """Makes the candidate a version of `model.registered_name`, and the run's best one its challenger.

    Registering again finds the version by run and policy digest and renews its tags, so a repeated step adds nothing
    and a late evaluation is taken in.

    Raises:
        OutsideError: MLflow is away.
        RecipeError: MLflow refuses such a source (`check_source`).
    """
    name, uri = recipe.model.registered_name, tracking_uri(recipe)
    assert name is not None  # of a benchmark no step gets here
    check_source(recipe, candidate.run_uri)
    client = open_client(uri)
    tags = _candidate_tags(recipe, candidate)
    with translated(uri):
        _ensure_model(client, name)
        mine = {v.tags.get(PREFIX + "digest"): v for v in _versions(client, name, candidate.run_uri)}
        version = mine.get(candidate.digest)
        if version is None:
            version = client.create_model_version(
                name, source=_source(candidate.uri), run_id=tracking_run_id, tags=tags
            )
        else:
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    client.set_model_version_tag(name, version.version, key, value)
        best = _mark_best(client, name, candidate.run_uri)
    return Registered(name, str(version.version), best=str(version.version) == best)


def promote(
    name: str,
    *,
    uri: str,
    version: str | None = None,
    alias: str = CHALLENGER,
    force: bool = False,
    dry_run: bool = False,
) -> Promotion:
    """Makes `version`, or whatever `alias` points at, the champion of model `name`; the champion so far becomes
    `previous`. With `dry_run` nothing changes.

    Args:
        uri: of MLflow.
        force: promotes also a worse or incomparable version.

    Raises:
        GuardTripped: its dev accuracy is below the champion's, or the two were not graded by the same grader on the
            same dev set.
        RecipeError: no such model, version or alias.
        OutsideError: MLflow is away.
    """
    client = open_client(uri, create=False)
    with translated(uri):
        candidate = _version(client, name, version=version, alias=alias)
        champion = _by_alias(client, name, CHAMPION)
    new = str(candidate.version)
    old = None if champion is None else str(champion.version)
    if old == new:
        kept = _by_alias(client, name, PREVIOUS)
        reason = f"version {new} is the champion already"
        return Promotion(name, new, None if kept is None else str(kept.version), reason, done=False)
    objection, reason = _compare(candidate, champion)
    if objection and not force:
        raise GuardTripped(f"{name} version {new} is not promoted: {reason}. Use --force to promote it all the same")
    if objection:
        reason += " (forced)"
    if not dry_run:
        with translated(uri):
            _crown(client, name, new, previous=old)
    return Promotion(name, new, old, reason, done=not dry_run)


def rollback(name: str, *, uri: str, dry_run: bool = False) -> Promotion:
    """Makes the previous champion the champion again; the two change places, so a second rollback undoes the first.

    Raises:
        RecipeError: there is no previous champion.
        OutsideError: MLflow is away.
    """
    client = open_client(uri, create=False)
    with translated(uri):
        previous = _by_alias(client, name, PREVIOUS)
        champion = _by_alias(client, name, CHAMPION)
        if previous is None or champion is None:
            raise RecipeError(f"{name} has no previous champion to go back to; `isr-dpo promote` makes one")
        new, old = str(previous.version), str(champion.version)
        if not dry_run:
            _crown(client, name, new, previous=old)
    return Promotion(name, new, old, f"back from version {old}", done=not dry_run)


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
        found = _version(client, match["name"], version=match["version"], alias=match["alias"] or "")
    return str(found.source)


def _candidate_tags(recipe: Recipe, candidate: Candidate) -> dict[str, str]:
    tags = {
        "run_uri": candidate.run_uri,
        "policy": str(candidate.index),
        "digest": candidate.digest,
        "recipe_digest": recipe.digest(),
        "dataset_digest": candidate.dataset_digest,
        "dev_digest": candidate.dev_digest,
        "grader": candidate.grader,
        **{f"metric.{key}": repr(float(value)) for key, value in candidate.metrics.items()},
    }
    if candidate.dev_accuracy is not None:
        tags["dev_accuracy"] = repr(float(candidate.dev_accuracy))
    return {PREFIX + key: value for key, value in tags.items()}


def _ensure_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: Any, name: str, run_uri: str) -> list[Any]:
    """This run's versions, oldest first."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page = client.search_model_versions(f"name = '{name}'", max_results=_PAGE, page_token=token or None)
        found += [v for v in page if v.tags.get(PREFIX + "run_uri") == run_uri]
        token = page.token or None
    return sorted(found, key=lambda v: int(v.version))


def _mark_best(client: Any, name: str, run_uri: str) -> str | None:
    """Moves the tag and the alias to the run's best version by dev accuracy, the earliest policy among equals."""
    versions = [v for v in _versions(client, name, run_uri) if PREFIX + "dev_accuracy" in v.tags]
    if not versions:
        return None
    best = max(versions, key=lambda v: (_accuracy(v), -int(v.tags[PREFIX + "policy"])))
    for other in versions:
        if other is not best and BEST in other.tags:
            client.delete_model_version_tag(name, other.version, BEST)
    if best.tags.get(BEST) != "true":
        client.set_model_version_tag(name, best.version, BEST, "true")
    client.set_registered_model_alias(name, CHALLENGER, best.version)
    return str(best.version)


def _compare(candidate: Any, champion: Any | None) -> tuple[bool, str]:
    """Whether something speaks against the candidate, and how the two compare, in words."""
    accuracy = _accuracy(candidate)
    if accuracy is None:
        return True, "its evaluation on the dev set is missing"
    if champion is None:
        return False, f"dev accuracy {accuracy:.4f}; there is no champion yet"
    standing = _accuracy(champion)
    if standing is None:
        return True, f"the champion, version {champion.version}, has no dev accuracy to compare with"
    for key, what in (("grader", "graders"), ("dev_digest", "dev sets")):
        mine, its = candidate.tags.get(PREFIX + key), champion.tags.get(PREFIX + key)
        if mine != its:
            return True, f"it and the champion, version {champion.version}, have different {what}: {mine} and {its}"
    words = f"dev accuracy {accuracy:.4f}, the champion's (version {champion.version}) is {standing:.4f}"
    return accuracy < standing, words


def _accuracy(version: Any) -> float | None:
    text = version.tags.get(PREFIX + "dev_accuracy")
    return None if text is None else float(text)


def _crown(client: Any, name: str, version: str, *, previous: str | None) -> None:
    """`previous` first: a cut between the two leaves a champion in place."""
    if previous is not None:
        client.set_registered_model_alias(name, PREVIOUS, previous)
    client.set_registered_model_alias(name, CHAMPION, version)


def _version(client: Any, name: str, *, version: str | None, alias: str) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
        if version is not None:
            return client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        what = f"registered model {name!r}" if version is None else f"version {version} of {name!r}"
        raise RecipeError(f"MLflow has no {what}") from error
    found = _by_alias(client, name, alias)
    if found is None:
        raise RecipeError(f"{name!r} has no alias {alias!r}; it has {sorted(model.aliases) or 'none'}")
    return found


def _by_alias(client: Any, name: str, alias: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _source(uri: str) -> str:
    """`uri` as MLflow's source: an object store's as it is, a path absolute."""
    path = uri.removeprefix("file://")
    return path if "://" in path else str(Path(path).absolute())
