"""MLflow: one parent run a run URI and recipe, a nested run a step.

Both are found again by a tag, so a resumed or repeated step goes on in the run that it had. Metrics are logged as
`<step>/<key>` with the round or policy index as MLflow's step: to the nested run, and to the parent, where they make
curves over the rounds. What training logs at each optimiser step goes to the nested run alone as `train/step/<key>`,
while it runs (live.py). Where MLFLOW_RUN_ID is set (KFP's MLflow plugin), that run at MLFLOW_TRACKING_URI is the
parent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isr_dpo.config import Recipe, flatten
from isr_dpo.errors import OutsideError
from isr_dpo.mlflow_client import open_client, sqlite_file, tracking_uri, translated

log = logging.getLogger(__name__)

PREFIX = "isr_dpo."
PAGE = "report/index.html"
"""The report among the parent's artifacts."""
_PARENT = "mlflow.parentRunId"
_ROUND_STEPS = ("train", "generate", "retrospect", "judge", "prefer")
_POLICY_STEPS = ("answer", "evaluate", "register", "report")
# MLflow's own limits are 100 params and 1000 metrics a batch and 8000 characters a tag.
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
_TAG_CHARACTERS = 8000


@dataclass(frozen=True)
class StepRun:
    """The nested run of a step that is running."""

    client: Any
    uri: str
    run_id: str
    parent_id: str
    step: str
    index: int

    def log(self, metrics: Mapping[str, float]) -> None:
        """Logs `metrics` as `<step>/<key>` at MLflow step `index`. Raises OutsideError."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        batch = [Metric(f"{self.step}/{key}", float(value), now, self.index) for key, value in metrics.items()]
        with translated(self.uri):
            for run_id in (self.run_id, self.parent_id):
                self.client.log_batch(run_id, metrics=batch)

    def curve(self, lines: Sequence[Mapping[str, Any]], known: set[int] | None = None) -> set[int]:
        """Logs optimiser steps as `<step>/step/<key>` at MLflow step `line["step"]`; those that the run has stay as
        they are. Raises OutsideError.

        Args:
            lines: each with `step`, `loss` and any other figures, and `time` (seconds since the epoch) or else now.
            known: the steps that the run has; none: MLflow is asked.

        Returns: the steps that the run has now.
        """
        from mlflow.entities import Metric

        now, prefix = time.time(), f"{self.step}/step/"
        with translated(self.uri):
            if known is None:
                known = {point.step for point in self.client.get_metric_history(self.run_id, prefix + "loss")}
            new = {int(line["step"]): line for line in lines if int(line["step"]) not in known}
            points = [
                [
                    Metric(prefix + key, float(value), int(1000 * line.get("time", now)), step)
                    for key, value in line.items()
                    if key not in ("step", "time") and value is not None
                ]
                for step, line in new.items()
            ]
            lines_per_batch = _METRICS_PER_BATCH // max(map(len, points), default=1)
            for start in range(0, len(points), lines_per_batch):  # no line is ever half there
                batch = [metric for line in points[start : start + lines_per_batch] for metric in line]
                self.client.log_batch(self.run_id, metrics=batch)
        return known | set(new)

    def page(self, content: str) -> None:
        """Logs the report as `report/index.html` of the parent, in place of the one before. Raises OutsideError."""
        from botocore.exceptions import BotoCoreError, ClientError  # MLflow lets those of an artifact store through

        try:
            with translated(self.uri):
                self.client.log_text(self.parent_id, content, PAGE)
        except (BotoCoreError, ClientError) as error:
            raise OutsideError(f"MLflow's artifact store: {error}") from error

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags such as digests and manifest URIs, under `isr_dpo.`. Raises OutsideError."""
        with translated(self.uri):
            self.client.log_batch(self.run_id, tags=_tags({PREFIX + key: value for key, value in tags.items()}))


@contextlib.contextmanager
def step_run(
    recipe: Recipe, *, run_uri: str, run_id: str, step: str, index: int, started: float | None = None
) -> Iterator[StepRun]:
    """The nested run of `step`, RUNNING inside the block and FINISHED after it.

    An exception in the block leaves it FAILED (KILLED where the process was told to stop) with the message as tag
    `isr_dpo.error`, and the parent too, until the next step begins.

    Args:
        run_uri: with the recipe it says which parent run this is.
        run_id: who owns the run URI (KFP's run id, say); a tag only.
        started: seconds since the epoch, where the work began before this block.

    Raises:
        OutsideError: MLflow is away; before the block where it is away from the start.
    """
    run = open_step(recipe, run_uri=run_uri, run_id=run_id, step=step, index=index, started=started)
    try:
        yield run
    except BaseException as error:
        record_failure(run, error)
        raise
    with translated(run.uri):
        run.client.set_terminated(run.run_id, "FINISHED")


def open_step(
    recipe: Recipe, *, run_uri: str, run_id: str, step: str, index: int, started: float | None = None
) -> StepRun:
    """The nested run of a step, RUNNING from here on, as its parent is. Raises OutsideError."""
    uri = tracking_uri(recipe)
    client = open_client(uri)
    with translated(uri):
        parent = _parent(client, recipe, run_uri=run_uri, run_id=run_id)
        nested = _nested(client, parent, _key(recipe, run_uri), step=step, index=index, started=started)
    return StepRun(client, uri, run_id=nested, parent_id=parent, step=step, index=index)


def finish(recipe: Recipe, *, run_uri: str) -> None:
    """Marks the parent run FINISHED, for the last step of a run; an injected parent belongs to KFP and stays as it is.
    Raises OutsideError."""
    if "MLFLOW_RUN_ID" in os.environ:
        return
    uri = tracking_uri(recipe)
    client = open_client(uri)
    with translated(uri):
        client.set_terminated(_parent(client, recipe, run_uri=run_uri, run_id=None), "FINISHED")


def finished_steps(recipe: Recipe, *, run_uri: str) -> set[tuple[str, int]]:
    """(step, index) of the steps whose nested run stands FINISHED, all in one look. Raises OutsideError."""
    uri = tracking_uri(recipe)
    client = open_client(uri)
    with translated(uri):
        experiment = client.get_experiment_by_name(recipe.tracking.experiment)
        if experiment is None:
            return set()
        wanted = f"tags.`{PREFIX}step_of` = '{_key(recipe, run_uri)}' and attributes.status = 'FINISHED'"
        runs = client.search_runs([experiment.experiment_id], filter_string=wanted, max_results=10_000)
    return {(r.data.tags[PREFIX + "step"], int(r.data.tags[PREFIX + "index"])) for r in runs}


def parent_id(recipe: Recipe, *, run_uri: str) -> str | None:
    """The id of the parent run; None where nothing is tracked of this run yet. Raises OutsideError."""
    if injected := os.environ.get("MLFLOW_RUN_ID"):
        return injected
    uri = tracking_uri(recipe)
    client = open_client(uri)
    with translated(uri):
        experiment = client.get_experiment_by_name(recipe.tracking.experiment)
        if experiment is None:
            return None
        wanted = f"tags.`{PREFIX}run_key` = '{_key(recipe, run_uri)}'"
        order = ["attributes.start_time ASC"]
        runs = client.search_runs([experiment.experiment_id], wanted, order_by=order, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def run_name(step: str, index: int) -> str:
    """`generate round-01`, `answer policy-02`, `prepare`."""
    if step in _ROUND_STEPS:
        return f"{step} round-{index:02d}"
    return f"{step} policy-{index:02d}" if step in _POLICY_STEPS else step


def _parent(client: Any, recipe: Recipe, *, run_uri: str, run_id: str | None) -> str:
    """The id of the parent run: the injected one, the one that stands, or a new one. `run_id` None: its status stays;
    "": whoever calls does not know the owner."""
    key = _key(recipe, run_uri)
    experiment = _experiment(client, recipe)
    injected = os.environ.get("MLFLOW_RUN_ID")
    if injected is not None:
        run = client.get_run(injected)
    else:
        # Two first steps at once may both create one: all later ones agree on the older.
        runs = client.search_runs(
            [experiment],
            filter_string=f"tags.`{PREFIX}run_key` = '{key}'",
            order_by=["attributes.start_time ASC"],
            max_results=1,
        )
        run = runs[0] if runs else client.create_run(experiment, run_name=recipe.name)
    parent, tags = str(run.info.run_id), run.data.tags
    if tags.get(PREFIX + "run_key") != key:
        _describe(client, parent, recipe, {"run_key": key, "run_uri": run_uri, "run_id": run_id or ""})
        return parent
    if run_id is not None and injected is None and run.info.status != "RUNNING":
        client.update_run(parent, status="RUNNING")
    if run_id and not tags.get(PREFIX + "run_id"):
        client.set_tag(parent, PREFIX + "run_id", run_id)
    return parent


def _describe(client: Any, parent: str, recipe: Recipe, tags: Mapping[str, str]) -> None:
    """The recipe as params and, where it fits, whole as a tag."""
    from mlflow.entities import Param

    flat = flatten(recipe.model_dump(mode="json"))
    params = [Param(k, v if isinstance(v, str) else json.dumps(v)) for k, v in flat.items()]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
        client.log_batch(parent, params=params[start : start + _PARAMS_PER_BATCH])
    more = {PREFIX + k: v for k, v in tags.items()} | {PREFIX + "recipe_digest": recipe.digest()}
    if len(recipe.canonical()) <= _TAG_CHARACTERS:
        more[PREFIX + "recipe"] = recipe.canonical()
    client.log_batch(parent, tags=_tags(more))


def _nested(client: Any, parent: str, key: str, *, step: str, index: int, started: float | None) -> str:
    tags = {
        _PARENT: parent,
        PREFIX + "step_of": key,
        PREFIX + "step": step,
        PREFIX + "index": str(index),
    }
    experiment = client.get_run(parent).info.experiment_id
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs([experiment], filter_string=wanted, max_results=1)
    if not runs:
        began = None if started is None else int(started * 1000)
        run = client.create_run(experiment, start_time=began, run_name=run_name(step, index), tags=tags)
        return str(run.info.run_id)
    nested = str(runs[0].info.run_id)
    client.update_run(nested, status="RUNNING")
    if PREFIX + "error" in runs[0].data.tags:
        client.delete_tag(nested, PREFIX + "error")
    return nested


def _experiment(client: Any, recipe: Recipe) -> str:
    from mlflow.exceptions import MlflowException

    name = recipe.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    folder = sqlite_file(tracking_uri(recipe))
    try:
        location = str(folder.parent / "mlartifacts") if folder else None
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # another step was faster
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def record_failure(run: StepRun, error: BaseException) -> None:
    """Best effort: the step's own error matters more than MLflow's."""
    status = "FAILED" if isinstance(error, Exception) else "KILLED"
    message = f"{type(error).__name__}: {error}"
    try:
        run.tag({"error": message})
        with translated(run.uri):
            run.client.set_terminated(run.run_id, status)
            if "MLFLOW_RUN_ID" not in os.environ:
                run.client.set_terminated(run.parent_id, status)
    except OutsideError as outside:
        log.warning("the failure could not be recorded: %s", outside)


def _key(recipe: Recipe, run_uri: str) -> str:
    """Names the parent run: 32 hexadecimal digits of run URI (a path made absolute) and recipe."""
    place = run_uri if "://" in run_uri else str(Path(run_uri).absolute())
    return hashlib.sha256(f"{place}\0{recipe.digest()}".encode()).hexdigest()[:32]


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(key, value[:_TAG_CHARACTERS]) for key, value in tags.items()]
