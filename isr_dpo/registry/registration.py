"""A policy becomes a version of the registered model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.mlflow_client import is_database, open_client, tracking_uri, translated
from isr_dpo.registry.card import model_card
from isr_dpo.registry.versions import BEST, CHALLENGER, of_run, place
from isr_dpo.tracking import PREFIX

IMAGE = "ISR_DPO_IMAGE"
"""Set by a placement: the image, by digest, that a step runs in."""


@dataclass(frozen=True)
class Candidate:
    """A policy to register. Digests are manifest digests; `grader` names who made the figures (as evaluate's
    protocol.json does) and `dev_digest` what they were made on; both are part of what makes two accuracies comparable.
    `dev_accuracy` is None while the evaluation is pending; `code_version` is that of the code that trained it."""

    run_uri: str
    index: int
    uri: str
    digest: str
    dataset_digest: str
    dev_digest: str
    grader: str
    dev_accuracy: float | None
    metrics: Mapping[str, float]
    code_version: str = ""


@dataclass(frozen=True)
class Registered:
    """A version of the registered model; `best` where it is its run's best by dev accuracy, the challenger."""

    name: str
    version: str
    best: bool


def check_source(recipe: Recipe, run_uri: str) -> None:
    """For the preflight. Raises RecipeError where MLflow would refuse the run's policies: a server accepts no local
    path as a model's source."""
    uri = tracking_uri(recipe)
    if not is_database(uri) and place(run_uri).startswith("/"):
        raise RecipeError(
            f"tracking.uri is the MLflow server {uri}, which refuses models from a local path such as {run_uri}: "
            "use an s3:// run URI, or a database such as sqlite:///runs/mlflow.db as tracking.uri"
        )


def register(recipe: Recipe, candidate: Candidate, *, tracking_run_id: str | None = None) -> Registered:
    """Makes the candidate a version of `model.registered_name`, and the run's best one its challenger.

    Registering again finds the version by run and policy digest and renews its tags and its card, so a repeated step
    adds nothing and a late evaluation is taken in.

    Args:
        tracking_run_id: the MLflow run that a new version points at.

    Raises:
        OutsideError: MLflow is away.
        RecipeError: MLflow refuses such a source (`check_source`).
    """
    name, uri = recipe.model.registered_name, tracking_uri(recipe)
    assert name is not None  # of a benchmark no step gets here
    check_source(recipe, candidate.run_uri)
    client = open_client(uri)
    tags = _tags(recipe, candidate)
    text = model_card(recipe, candidate)
    with translated(uri):
        _ensure_model(client, name)
        mine = {v.tags.get(PREFIX + "digest"): v for v in of_run(client, name, place(candidate.run_uri))}
        version = mine.get(candidate.digest)
        if version is None:
            version = client.create_model_version(
                name, source=place(candidate.uri), run_id=tracking_run_id, tags=tags, description=text
            )
        else:
            for key, value in tags.items():
                if version.tags.get(key) != value:
                    client.set_model_version_tag(name, version.version, key, value)
            if version.description != text:
                client.update_model_version(name, version.version, description=text)
        best = _mark_best(client, name, place(candidate.run_uri))
    return Registered(name, str(version.version), best=str(version.version) == best)


def _tags(recipe: Recipe, candidate: Candidate) -> dict[str, str]:
    tags = {
        "run_uri": place(candidate.run_uri),
        "policy": str(candidate.index),
        "round": str(candidate.index - 1),  # the round that made it; round 0 is the seed DPO
        "digest": candidate.digest,
        "recipe": recipe.name,
        "recipe_digest": recipe.digest(),
        "dataset_digest": candidate.dataset_digest,
        "dev_digest": candidate.dev_digest,
        "grader": candidate.grader,
        "code_version": candidate.code_version,
        **{f"metric.{key}": repr(float(value)) for key, value in candidate.metrics.items()},
    }
    if image := os.environ.get(IMAGE):
        tags["image"] = image
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


def _mark_best(client: Any, name: str, run_uri: str) -> str | None:
    """Moves the tag and the alias to the run's best version by dev accuracy, the earliest policy among equals."""
    versions = [v for v in of_run(client, name, run_uri) if PREFIX + "dev_accuracy" in v.tags]
    if not versions:
        return None
    best = max(versions, key=lambda v: (float(v.tags[PREFIX + "dev_accuracy"]), -int(v.tags[PREFIX + "policy"])))
    for other in versions:
        if other is not best and BEST in other.tags:
            client.delete_model_version_tag(name, other.version, BEST)
    if best.tags.get(BEST) != "true":
        client.set_model_version_tag(name, best.version, BEST, "true")
    client.set_registered_model_alias(name, CHALLENGER, best.version)
    return str(best.version)
