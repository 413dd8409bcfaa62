"""Submits a run: everything is asked before anything is started, and a run that goes on already is found again."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from isr_dpo.config import Recipe
from isr_dpo.errors import ClusterRefused, RecipeError
from pipelines import package
from pipelines.checks import run_name, survey_run
from pipelines.follow import follow
from pipelines.fork import reuse
from pipelines.kfp_api import KfpApi
from pipelines.placement import Placement


class Target(NamedTuple):
    """Where to, and under which name. `asks_kubernetes`: False where the submitter may see KFP alone."""

    host: str | None
    namespace: str | None
    experiment: str
    asks_kubernetes: bool = True


def submit(
    recipe: Recipe,
    place: Placement,
    run_uri: str,
    target: Target,
    *,
    reuses: str | None = None,
    dry_run: bool = False,
    followed: bool = False,
) -> int:
    """Checks the run of `recipe`, fitted to `place`, and starts it. `reuses`: a run whose dataset and frames serve this
    one. `followed`: stays until it has ended. Returns the process's exit code, followed that of the run.

    Raises:
        RecipeError: all findings of the preflight.
        KeyRefused, ClusterRefused, OutsideError: Kubeflow Pipelines does not take the run.
    """
    console = Console()
    api = KfpApi(target.host, target.namespace)
    check(console, recipe, place, run_uri, target, api)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.yaml"
        package.write(recipe, path, place, run=run_uri)
        name = run_name(recipe, run_uri)
        if dry_run:
            _say(console, f"{name}: would be created in experiment {target.experiment} ({path.stat().st_size} bytes)")
            return 0
        if reuses is not None:
            reuse(reuses, run_uri)
        run_id = api.create_run(
            path,
            {"run_uri": run_uri},
            name=name,
            experiment=target.experiment,
            pipeline_root=place.pipeline_root,
            service_account=place.service_account,
        )
        _say(console, f"{name}: {api.link(run_id)}")
        return follow(console, api, run_id, path, recipe, run_uri) if followed else 0


def check(console: Console, recipe: Recipe, place: Placement, run_uri: str, target: Target, api: KfpApi) -> None:
    """The preflight, its notes printed. Raises RecipeError: every finding, a line each."""
    from isr_dpo.cluster.kube import open_cluster

    cluster, closed = None, []
    try:
        cluster = open_cluster(target.namespace) if target.asks_kubernetes else None
    except ClusterRefused as error:
        closed = [f"{error}; or leave its checks out: --without-kubernetes"]
    found = survey_run(recipe, place, run_uri, api=api, experiment=target.experiment, cluster=cluster)
    found.findings.extend(closed)
    for note in found.notes:
        _say(console, f"  {note}")
    if found.findings:
        lines = "\n".join(f"  - {finding}" for finding in found.findings)
        raise RecipeError(f"preflight: nothing is submitted, {len(found.findings)} to mend:\n{lines}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
