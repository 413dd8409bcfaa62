"""Running a step: the run's lock, failures, MLflow."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from isr_dpo import config, layout, times
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, OutsideError, RecipeError
from isr_dpo.manifest import Manifest
from isr_dpo.orphans import DRIVER_PID, die_with
from isr_dpo.parts import Share
from isr_dpo.progress import speak
from isr_dpo.steps.assess import answer_step, register_step, report_step
from isr_dpo.steps.common import Inputs, StepResult
from isr_dpo.steps.evaluate import evaluate_step
from isr_dpo.steps.prefer import prefer_step, taken
from isr_dpo.steps.prepare import preflight_step, prepare_step
from isr_dpo.steps.rounds import generate_step, judge_step, retrospect_step
from isr_dpo.steps.train import train_step
from isr_dpo.steps.train_launch import train_launch
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes
from isr_dpo.stores.lock import owner
from isr_dpo.titles import title

if TYPE_CHECKING:
    from isr_dpo.tracking import StepRun

log = logging.getLogger("isr_dpo")

Step = Callable[[Recipe, Inputs, str, int], StepResult]
STEPS: Mapping[str, Step] = {
    "preflight": preflight_step,
    "prepare": prepare_step,
    "generate": generate_step,
    "retrospect": retrospect_step,
    "judge": judge_step,
    "prefer": prefer_step,
    "train": train_step,
    "answer": answer_step,
    "evaluate": evaluate_step,
    "register": register_step,
    "report": report_step,
}


class _Shared(Protocol):
    def __call__(self, recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share) -> StepResult: ...


SHARED: Mapping[str, _Shared] = {
    "generate": generate_step,
    "retrospect": retrospect_step,
    "judge": judge_step,
    "prefer": prefer_step,
    "answer": answer_step,
}
"""Steps whose parts several pods can share."""


class Artifact(Protocol):
    """As much of a KFP artifact as a step needs."""

    path: str
    metadata: dict[str, Any]


class MetricsArtifact(Protocol):
    """As much of KFP's metrics artifact."""

    def log_metric(self, metric: str, value: float) -> None: ...


def execute(
    name: str,
    recipe: str,
    run_uri: str,
    run_id: str,
    index: int,
    inputs: Mapping[str, Artifact | None],
    output: Artifact,
    metrics: MetricsArtifact,
    *,
    expected_digest: str | None = None,
    share: int = 0,
    pods: str = "",
) -> None:
    """Runs step `name` as a part of run `run_id`: what every KFP component calls.

    Input artifacts are files with a manifest; the output's manifest, or the report's page, is written to `output.path`.
    `share` k above 0: only the parts of the k-th of engine.pods pods, which nobody seals yet. `pods`: where train runs
    on several nodes, those of its TrainJob (`cluster.train_job.Pods` as JSON).

    Raises:
        RecipeError: the recipe is not the one of `expected_digest`, which the pipeline was compiled from.
    """
    speak()
    for chatty in ("httpx", "alembic", "mlflow", "botocore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if driver := os.environ.get(DRIVER_PID):
        die_with(int(driver))
    parsed = config.parse(recipe)
    if expected_digest is not None and parsed.digest() != expected_digest:
        raise RecipeError("the recipe given is not the one this pipeline was compiled from: compile the pipeline again")
    given = {
        key: taken(Manifest.from_json(Path(artifact.path).read_text("utf-8"), where=f"{name}, input {key}"), key)
        for key, artifact in inputs.items()
        if artifact is not None
    }
    with owner(run_uri, run_id):
        if share:
            result = run_share(name, parsed, given, run_uri, index, Share(share, parsed.engine.pods), run_id=run_id)
        else:
            work = _launched(pods, run_id) if pods else None
            result = run_step(name, parsed, given, run_uri, index, run_id=run_id, work=work, timed=work is None)
    made = result.manifest
    Path(output.path).parent.mkdir(parents=True, exist_ok=True)
    Path(output.path).write_text(result.page or made.to_json(), encoding="utf-8")
    output.metadata.update(uri=made.uri, digest=made.digest, rows=made.rows)
    for key, value in result.metrics.items():
        metrics.log_metric(key.replace("/", "_"), value)


def _launched(pods: str, run_id: str) -> Step:
    from isr_dpo.cluster.train_job import Pods

    return functools.partial(train_launch, run_id=run_id, pods=Pods.from_json(pods))


def run_step(
    name: str,
    recipe: Recipe,
    inputs: Inputs,
    run_uri: str,
    index: int,
    *,
    run_id: str | None = None,
    work: Step | None = None,
    timed: bool = True,
) -> StepResult:
    """Runs one step, tracks it in MLflow, and records a failure in <run>/failed.json. Without `run_id` each call is an
    attempt of its own. `work`: what does the step, where it is not `STEPS[name]` as it stands. `timed`: nobody else
    records the time that it takes.

    Raises:
        IsrDpoError: the step's; a permanent one of the same run attempt is raised again without trying.
    """
    run_id = run_id or new_run_id()
    _refuse_repeat(run_uri, name, index, run_id)
    log.info("%s", title(name, index))
    started = time.time()
    try:
        do = functools.partial(work or STEPS[name], recipe, inputs, run_uri, index)
        result = _timed(do, run_uri, name, index) if timed else do()
        _track(name, recipe, result, run_uri, index, run_id=run_id, started=started)
    except BaseException as error:
        _record_failure(error, name, recipe, index, run_uri, run_id)
        raise
    what = "stood complete" if result.reused else "done"
    log.info("%s: %s, %.1f s", title(name, index), what, time.time() - started)
    return result


def run_share(
    name: str, recipe: Recipe, inputs: Inputs, run_uri: str, index: int, share: Share, *, run_id: str | None = None
) -> StepResult:
    """Does a share of a step's parts. The step itself, run after all shares, finds them done, does what may be missing,
    and seals; it is what MLflow is told of.

    Raises:
        IsrDpoError: as `run_step` does.
    """
    run_id = run_id or new_run_id()
    where = f"{title(name, index)}, share {share.number} of {share.of}"
    _refuse_repeat(run_uri, name, index, run_id)
    log.info("%s", where)
    started = time.time()
    try:
        work = functools.partial(SHARED[name], recipe, inputs, run_uri, index, share=share)
        result = _timed(work, run_uri, name, index, share=share.number)
    except BaseException as error:
        _record_failure(error, name, recipe, index, run_uri, run_id)
        raise
    log.info("%s: done, %.1f s", where, time.time() - started)
    return result


def new_run_id() -> str:
    """An id that no other attempt has."""
    return uuid.uuid4().hex[:12]


def rebuild_report(run_uri: str, recipe: Recipe) -> str | None:
    """Writes the report anew from the run's files, a failure shown; its URI, None where the run has not begun."""
    from isr_dpo import report

    try:
        read_bytes(layout.run_file(run_uri))
    except Missing:
        return None
    return report.build(run_uri, recipe)


def _track(
    name: str, recipe: Recipe, result: StepResult, run_uri: str, index: int, *, run_id: str, started: float
) -> None:
    """Logs a step to MLflow once: what was logged is remembered beside the run, so that a step whose output stands does
    not even load MLflow."""
    uri = layout.tracked(run_uri, name, index)
    shown = name == "train" and bool(result.metrics) and not result.reused  # its run stands open (live.py)
    new_page = result.page if name == "report" and not result.reused else None
    try:
        if not shown and new_page is None and read_bytes(uri).decode() == result.manifest.digest:
            return
    except Missing:
        pass
    from isr_dpo import tracking

    made = result.manifest
    with tracking.step_run(recipe, run_uri=run_uri, run_id=run_id, step=name, index=index, started=started) as run:
        if name == "train":
            run.curve(_training_log(run_uri, index))
        run.log({**result.metrics, "seconds": time.time() - started})
        if new_page is not None:
            _show(run, new_page)
        run.tag({"uri": made.uri, "digest": made.digest, **{f"input.{k}": d for k, d in made.inputs.items()}})
    if (name, index) == ("report", recipe.iterations):
        tracking.finish(recipe, run_uri=run_uri)
    write_bytes(uri, made.digest.encode())


def _show(run: StepRun, page: str) -> None:
    """Logs the report; an artifact store that does not take it costs a warning, not the training."""
    try:
        run.page(page)
    except OutsideError as error:
        log.warning("the report stands in the run and could not be logged to MLflow: %s", error)


def _training_log(run_uri: str, index: int) -> list[dict[str, Any]]:
    """A line an optimiser step; none where policy-01 is the start itself."""
    try:
        text = read_bytes(join(layout.round_output(run_uri, index, "training"), "log.jsonl"))
    except Missing:
        return []
    return [json.loads(line) for line in text.splitlines()]


def _refuse_repeat(run_uri: str, name: str, index: int, run_id: str) -> None:
    """A retry of the attempt that failed for good fails at once with what was recorded; any other record of this step,
    and one of an earlier attempt, is done with."""
    uri = layout.failure(run_uri)
    try:
        failed = json.loads(read_bytes(uri))
    except Missing:
        return
    this_step = (failed["step"], failed["index"]) == (name, index)
    if this_step and failed["run_id"] == run_id and not failed["retry"]:
        error = IsrDpoError(failed["message"])
        error.exit_code = failed["exit_code"]
        raise error
    if this_step or failed["run_id"] != run_id:
        open_store(uri).delete(uri)


def _timed(work: Callable[[], StepResult], run_uri: str, name: str, index: int, *, share: int = 0) -> StepResult:
    """The result of `work`, its time recorded in <run>/times unless it found everything done."""
    started = time.time()
    try:
        result = work()
    except BaseException as error:
        ended = type(error).__name__
        with contextlib.suppress(IsrDpoError, OSError):  # what went wrong matters more than how long it took
            spent = time.time() - started
            times.record(run_uri, name, index, started=started, seconds=spent, ended=ended, share=share)
        raise
    if not result.reused:
        spent, metrics = time.time() - started, {} if share else result.metrics
        times.record(run_uri, name, index, started=started, seconds=spent, metrics=metrics, share=share)
    return result


def _record_failure(error: BaseException, name: str, recipe: Recipe, index: int, run_uri: str, run_id: str) -> None:
    """In <run>/failed.json, and in MLflow; neither may hide the error itself."""
    known = isinstance(error, IsrDpoError)
    tree = {
        "step": name,
        "index": index,
        "run_id": run_id,
        "error": type(error).__name__,
        "message": str(error) if known else f"{type(error).__name__}: {error}",
        "exit_code": error.exit_code if isinstance(error, IsrDpoError) else 1,
        "retry": not known or bool(getattr(error, "retry", False)),
    }
    try:
        write_bytes(layout.failure(run_uri), (json.dumps(tree, indent=1) + "\n").encode())
    except (IsrDpoError, OSError) as second:  # the store itself may be what failed
        log.warning("the failure could not be recorded: %s", second)
    if name == "preflight" or isinstance(error, OutsideError):  # what is missing may be MLflow
        return
    from isr_dpo import tracking

    with (
        contextlib.suppress(OutsideError, type(error)),
        tracking.step_run(recipe, run_uri=run_uri, run_id=run_id, step=name, index=index),
    ):
        raise error
