"""The preflight of a submission: all that would stop a run later is found now, at once, each with the way out."""

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

from isr_dpo import estimate as estimates
from isr_dpo import preflight
from isr_dpo.cluster import survey
from isr_dpo.cluster.kube import Cluster
from isr_dpo.config import Recipe
from isr_dpo.data import rows
from isr_dpo.data.clips import Library
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import IsrDpoError, RecipeError
from isr_dpo.manifest import BUILTIN, local_folder
from isr_dpo.mlflow_client import sqlite_file
from pipelines.kfp_api import KfpApi
from pipelines.package import check_parameters
from pipelines.placed import is_spare, uses_gpu
from pipelines.placement import NO_DIGEST, Placement, Step, amount

SAMPLE = 8
"""Videos that are looked for, of each file that names some."""
Check = Callable[[], str | None]
"""Raises a finding; returns a note, or None."""


class Surveyed(NamedTuple):
    """What speaks against a submission, and what is only worth knowing."""

    findings: list[str]
    notes: list[str]


def survey_run(
    recipe: Recipe, place: Placement, run_uri: str, *, api: KfpApi, experiment: str, cluster: Cluster | None
) -> Surveyed:
    """Asks everything. `cluster` None: Kubernetes itself is not asked."""
    found = Surveyed([], [])
    for check in _checks(recipe, place, run_uri, api, experiment, cluster):
        try:
            note = check()
        except IsrDpoError as error:
            found.findings.append(str(error))
        else:
            if note:
                found.notes.append(note)
    for listed in found:
        listed[:] = dict.fromkeys(listed)
    return found


def _checks(
    recipe: Recipe, place: Placement, run_uri: str, api: KfpApi, experiment: str, cluster: Cluster | None
) -> Iterator[Check]:
    steps = steps_of(recipe, place)
    yield lambda: check_parameters(recipe, run_uri)
    yield lambda: _images(place, steps)
    yield lambda: _remote(recipe, run_uri)
    yield api.check
    yield lambda: None if api.experiment(experiment) else f"experiment {experiment} is new: it is created with the run"
    yield lambda: _another_run(recipe, run_uri)
    yield lambda: _going_on(recipe, run_uri, api)
    yield from (functools.partial(_probed, probe) for probe in preflight.outside(recipe, run_uri))
    yield lambda: _sampled(recipe)
    yield lambda: _grader(recipe)
    yield lambda: _estimated(recipe, place)
    if cluster is None:
        yield lambda: "Kubernetes is not asked for accounts, secrets, volumes, nodes, quota and MLflow"
        yield lambda: _tracking(recipe, run_uri, None)
    else:
        yield lambda: _tracking(recipe, run_uri, cluster)
        yield from _in_cluster(recipe, place, steps, cluster)


def _probed(probe: Callable[[], object]) -> None:
    probe()


def steps_of(recipe: Recipe, place: Placement) -> dict[str, Step]:
    """The steps that the recipe has tasks of."""
    if recipe.is_benchmark:
        names = {"preflight", "prepare", "answer", "evaluate", "report"}
    else:
        fused = recipe.engine.fused
        rounds = {"prefer"} if fused else {"generate", "judge", "retrospect"}
        several = place.steps["train"].nodes > 1
        names = {"preflight", "prepare", "train", "answer", "evaluate", "register", "report"}
        names |= rounds if recipe.iterations > 1 else set()
        names |= {"train-launch"} if several else set()
    return {name: step for name, step in place.steps.items() if name in names}


def _images(place: Placement, steps: dict[str, Step]) -> None:
    unset = sorted({step.image for step in steps.values() if place.images[step.image].endswith(NO_DIGEST)})
    if unset:
        raise RecipeError(
            f"placement {place.name}: images.{', images.'.join(unset)} still have a digest of zeros: build and push "
            "them (make images) and write the digests that the push prints into a copy of the placement"
        )


def _remote(recipe: Recipe, run_uri: str) -> None:
    """What pods read and write lies where pods can reach it."""
    named = {"--run-uri": run_uri, **recipe.places}
    here = {key: uri for key, uri in named.items() if not uri.startswith(BUILTIN) and local_folder(uri) is not None}
    local = [f"{key} ({uri})" for key, uri in here.items()]
    if local:
        raise RecipeError(f"no pod has this machine's files: {', '.join(local)}; bring them to s3:// and say so")


def _another_run(recipe: Recipe, run_uri: str) -> None:
    standing = preflight.standing_recipe(run_uri)
    if standing is not None and standing["name"] != recipe.name:
        raise RecipeError(
            f"{run_uri} holds a run of the recipe {standing['name']!r}, this one is {recipe.name!r}: another --run-uri"
        )
    preflight.check_changes(recipe, run_uri)


def _going_on(recipe: Recipe, run_uri: str, api: KfpApi) -> str | None:
    """A run of this very recipe is found again; another one on the URI would keep this one out."""
    for name, run_id in api.live_at(run_uri).items():
        if name != run_name(recipe, run_uri):
            raise RecipeError(
                f"{run_uri}: {name} goes on there ({api.link(run_id)}): wait for it, stop it, or another --run-uri"
            )
        return f"{name} goes on already"
    return None


def run_name(recipe: Recipe, run_uri: str) -> str:
    """The same for the same recipe and URI: by it a second submission finds the first."""
    return f"{recipe.name}-{canonical_digest([run_uri, recipe.digest()])[:10]}"


def _sampled(recipe: Recipe) -> None:
    if recipe.answer.predictions:
        return
    data, library = recipe.data_read, Library()
    files = {"data.train": data.train} | {f"data.sets.{name}": uri for name, uri in data.sets.items()}
    lacking = []
    for key, uri in files.items():
        if uri is None:
            continue
        folder = uri.rpartition("/")[0]
        for located in itertools.islice(rows.read(uri, rows.Named, key=key), SAMPLE):
            place = library.locate(located.row.video, folder=folder, root=data.videos)
            if library.identity(place) is None:
                lacking.append(f"{place} (of {key})")
    if lacking:
        more = f" and {len(lacking) - 3} more of {SAMPLE} a file that were looked for" if len(lacking) > 3 else ""
        raise RecipeError(f"videos are missing: {', '.join(lacking[:3])}{more}; isr-dpo data fetch brings them")


def _grader(recipe: Recipe) -> str | None:
    if recipe.evaluate.grader != "openai":
        return None
    if not os.environ.get("OPENAI_API_KEY"):
        return "the grader is not asked: OPENAI_API_KEY is not set here; evaluate has its own from the secret"
    from isr_dpo.evaluate.reach import check_endpoint

    check_endpoint(recipe.evaluate)
    return None


def _estimated(recipe: Recipe, place: Placement) -> str:
    at = {
        name: estimates.Place(step.gpu.kind, step.gpu.count, step.nodes)
        for name, step in place.steps.items()
        if step.gpu and uses_gpu(recipe, name)
    }
    found = estimates.estimate(recipe, estimates.Placement(place.name, at, default=None))
    if findings := found.findings():
        raise RecipeError("; ".join(findings))
    usd = "" if not found.grader.usd else f", grades for {found.grader.usd:.2f} USD"
    return f"estimate: {found.gpu_hours:.0f} GPU-hours, {found.wall_hours:.1f} h{usd}; most of it {found.dominant.step}"


def _tracking(recipe: Recipe, run_uri: str, cluster: Cluster | None) -> str | None:
    """MLflow, asked itself, or where its address is one of the cluster's own, asked for in Kubernetes."""
    if sqlite_file(recipe.tracking.uri) is not None:
        raise RecipeError(
            f"tracking.uri ({recipe.tracking.uri}) is a file, of which each pod would have its own: name the cluster's "
            "MLflow as tracking_uri in the placement, or as the recipe's tracking.uri"
        )
    host = urlsplit(recipe.tracking.uri).hostname or ""
    name, _, rest = host.partition(".")
    inside = host not in ("localhost", "") and (not rest or "." not in rest or rest.partition(".")[2].startswith("svc"))
    if not inside:
        preflight.check_tracking(recipe, run_uri)
        return None
    if cluster is None:
        return f"{recipe.tracking.uri} is an address inside the cluster: MLflow is not asked from here"
    return survey.check_service(cluster, name, rest.partition(".")[0] or cluster.namespace)


def _in_cluster(recipe: Recipe, place: Placement, steps: dict[str, Step], cluster: Cluster) -> Iterator[Check]:
    accounts = {place.service_account} | ({place.train_service_account} if "train-launch" in steps else set())
    for account in sorted(accounts):
        yield functools.partial(survey.check_there, cluster, "serviceaccounts", account)
    if place.cache_claim is not None:
        yield functools.partial(survey.check_there, cluster, "persistentvolumeclaims", place.cache_claim)
    secrets: dict[str, set[str]] = {}
    for name, step in steps.items():
        for secret, keys in place.secrets_of(step).items():
            if not is_spare(recipe, name, step, secret):
                secrets.setdefault(secret, set()).update(keys)
    for secret, wanted in sorted(secrets.items()):
        yield functools.partial(survey.check_secret, cluster, secret, wanted)
    for name, step in steps.items():
        yield functools.partial(_quota, recipe, place, name, step, cluster)
        if step.gpu and uses_gpu(recipe, name):
            yield functools.partial(_gpu_nodes, place, step, cluster)


def _gpu_nodes(place: Placement, step: Step, cluster: Cluster) -> str | None:
    assert step.gpu is not None
    nodes = place.gpus[step.gpu.kind]
    return survey.check_nodes(
        cluster,
        place.nodes_of(step, gpu=True).node_selector,
        resource=nodes.resource,
        count=step.gpu.count,
        scales_from_zero=nodes.scales_from_zero,
    )


def _quota(recipe: Recipe, place: Placement, name: str, step: Step, cluster: Cluster) -> str | None:
    """Of one pod: pods of a step that find no room wait for each other."""
    gpu = step.gpu if step.gpu and uses_gpu(recipe, name) else None
    size = place.without_gpu if step.gpu and not gpu else step
    wanted = {
        f"{kind}.{what}": amount(getattr(amounts, what))
        for kind, amounts in (("requests", size.requests), ("limits", size.limits))
        for what in ("cpu", "memory")
    }
    wanted |= {what: amount(getattr(size.requests, what)) for what in ("cpu", "memory")}
    if gpu:
        wanted[f"requests.{place.gpus[gpu.kind].resource}"] = gpu.count * step.nodes
    return survey.check_quota(cluster, wanted, who=f"a pod of {name}")
