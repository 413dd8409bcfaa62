"""The step evaluate: it needs the network and no GPU, and is the only one that asks the grader."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence

from isr_dpo import layout
from isr_dpo.config import Evaluate, Recipe
from isr_dpo.errors import KeyRefused, OutsideError
from isr_dpo.evaluate import Grader, grades, open_grader, open_protocol
from isr_dpo.manifest import Manifest
from isr_dpo.outputs import Output
from isr_dpo.progress import Progress
from isr_dpo.records import Prediction, TestRow
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

    Raises:
        OutsideError: evaluate.required, and a set is pending.
    """
    answers = members(inputs["answers"])
    begun = {name: _begin(recipe, inputs["dataset"], made, run_uri, index, name) for name, made in answers.items()}
    done = {name: reused(out).manifest for name, out in begun.items() if isinstance(out, Manifest)}
    todo = {name: out for name, out in begun.items() if isinstance(out, Output)}
    pending: dict[str, OutsideError] = {}
    for settings in _passes(recipe.evaluate) if todo else ():
        open_once = functools.cache(functools.partial(open_grader, settings, run_uri=run_uri))
        pending = {}
        for name in sorted(todo.keys() - done.keys()):
            try:
                rows = test_rows(inputs["dataset"], name)
                done[name] = _grade_set(recipe, answers[name], rows, todo[name], name, index, open_once())
            except KeyRefused as error:
                pending = dict.fromkeys(todo.keys() - done.keys(), error)
                break
            except OutsideError as error:
                pending[name] = error
        if any(isinstance(error, KeyRefused) for error in pending.values()):
            break
    _tell(pending, run_uri, index)
    if pending and recipe.evaluate.required:
        raise next(iter(pending.values()))
    return _result(recipe, done, run_uri, index, pending=len(pending), reused=not todo)


def grading_digest(recipe: Recipe, name: str) -> str:
    """Digest of the prompt that the grades of a set depend on; none where a grader is shown no prompt."""
    return "" if recipe.evaluate.grader == "rules" else open_protocol(recipe.protocol(name)).prompt_digest


def _passes(asked: Evaluate) -> Iterator[Evaluate]:
    """The settings to grade with, one after the other until nothing is left: the batches of all sets are ordered before
    any is waited for."""
    if asked.grader != "rules" and asked.batch:
        yield asked.model_copy(update={"batch_hours": 0.0})
    yield asked


def _begin(
    recipe: Recipe, dataset: Manifest, answers: Manifest, run_uri: str, index: int, name: str
) -> Manifest | Output:
    uri = layout.graded(run_uri, index, recipe.protocol(name), name)
    made_from = {"answers": answers, "dataset": dataset}
    return begin(recipe, "evaluation", "evaluate", made_from, uri, prompts_digest=grading_digest(recipe, name))


def _grade_set(
    recipe: Recipe, answers: Manifest, rows: Sequence[TestRow], out: Output, name: str, index: int, grader: Grader
) -> Manifest:
    whole = recipe.evaluate.batch and recipe.evaluate.grader != "rules"
    grades.evaluate(
        rows_of(answers, Prediction),
        rows,
        grader,
        protocol=open_protocol(recipe.protocol(name)),
        reading=recipe.evaluate.reading,
        output=out,
        rows_per_part=len(rows) if whole else recipe.engine.rows_per_part,  # one batch a set, not one a part
        progress=Progress(f"evaluate, policy {index}, {name}", len(rows), "answers"),
    )
    return out.seal(rows=len(rows), deterministic=recipe.evaluate.grader == "rules")


def _result(
    recipe: Recipe, done: Mapping[str, Manifest], run_uri: str, index: int, *, pending: int, reused: bool
) -> StepResult:
    metrics: dict[str, float] = {"pending_sets": pending}
    for name, made in sorted(done.items()):
        metrics |= {f"{name}/{key}": value for key, value in metrics_of(made).items()}
    named = {layout.graded_name(recipe.protocol(name), name): made for name, made in done.items()}
    return StepResult(bundle("evaluation", "evaluate", layout.evaluation(run_uri, index), named), metrics, reused)


def _tell(pending: Mapping[str, OutsideError], run_uri: str, index: int) -> None:
    for name, error in sorted(pending.items()):
        log.error("PENDING: evaluation of policy %d on %s: %s", index, name, error)
    if pending:
        log.error(
            "nothing is lost: run again, or `isr-dpo evaluate RECIPE --run-uri %s --index %d`, to complete it",
            run_uri,
            index,
        )
