"""The step evaluate: it needs the network and no GPU, and is the only one that asks the grader."""

from __future__ import annotations

import functools
import logging

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.errors import KeyRefused, OutsideError
from isr_dpo.evaluate import Grader, grades, open_grader, open_protocol
from isr_dpo.manifest import Manifest, Output
from isr_dpo.progress import Progress
from isr_dpo.records import Prediction
from isr_dpo.steps.common import (
    Inputs,
    StepResult,
    begin,
    bundle,
    members,
    metrics_of,
    reused,
    rows_of,
    test_rows,
)

log = logging.getLogger("isr_dpo")


def evaluate_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Grades the answers: evaluation/policy-pp/<protocol>-<set>.

    A grader that stays away, or whose budget is spent, leaves a set pending, without a manifest and with the grades it
    has, unless evaluate.required; a later run, or `isr-dpo evaluate`, completes it. A refused key leaves all pending.
    """
    done: dict[str, Manifest] = {}
    pending: dict[str, OutsideError] = {}
    new = 0
    open_once = functools.cache(lambda: open_grader(recipe.evaluate, run_uri=run_uri))
    for name, answers in members(inputs["answers"]).items():
        out = _begin(recipe, {"answers": answers, "dataset": inputs["dataset"]}, run_uri, index, name)
        if isinstance(out, Manifest):
            done[name] = reused(out).manifest
            continue
        refused = next((error for error in pending.values() if isinstance(error, KeyRefused)), None)
        if refused is not None:
            pending[name] = refused
            continue
        try:
            done[name] = _grade_set(recipe, inputs["dataset"], answers, out, name, index, open_once())
            new += 1
        except OutsideError as error:
            if recipe.evaluate.required:
                raise
            pending[name] = error
    _tell(pending, run_uri, index)
    metrics: dict[str, float] = {"pending_sets": len(pending)}
    for name, made in done.items():
        metrics |= {f"{name}/{key}": value for key, value in metrics_of(made).items()}
    named = {layout.graded_name(recipe.protocol(name), name): made for name, made in done.items()}
    whole = bundle("evaluation", "evaluate", layout.evaluation(run_uri, index), named)
    return StepResult(whole, metrics, reused=not new and not pending)


def grading_digest(recipe: Recipe, name: str) -> str:
    """Digest of the prompt that the grades of a set depend on; none where a grader is shown no prompt."""
    return "" if recipe.evaluate.grader == "rules" else open_protocol(recipe.protocol(name)).prompt_digest


def _begin(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, name: str) -> Manifest | Output:
    uri = layout.graded(run_uri, index, recipe.protocol(name), name)
    return begin(recipe, "evaluation", "evaluate", inputs, uri, prompts_digest=grading_digest(recipe, name))


def _grade_set(
    recipe: Recipe, dataset: Manifest, answers: Manifest, out: Output, name: str, index: int, grader: Grader
) -> Manifest:
    rows = test_rows(dataset, name)
    grades.evaluate(
        rows_of(answers, Prediction),
        rows,
        grader,
        protocol=open_protocol(recipe.protocol(name)),
        reading=recipe.evaluate.reading,
        output=out,
        rows_per_part=recipe.engine.rows_per_part,
        progress=Progress(f"evaluate, policy {index}, {name}", len(rows), "answers"),
    )
    return out.seal(rows=len(rows), deterministic=recipe.evaluate.grader == "rules")


def _tell(pending: dict[str, OutsideError], run_uri: str, index: int) -> None:
    for name, error in pending.items():
        log.error("PENDING: evaluation of policy %d on %s: %s", index, name, error)
    if pending:
        log.error(
            "nothing is lost: run again, or `isr-dpo evaluate RECIPE --run-uri %s --index %d`, to complete it",
            run_uri,
            index,
        )
