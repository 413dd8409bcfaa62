"""Answers by a system that is not run here: the step answer of such a benchmark. They stand in prediction files, or as
the answers of another run, which a new grader is to see together with others."""

from __future__ import annotations

import hashlib
import logging
from typing import NamedTuple

from isr_dpo import answer, layout, manifest, outputs
from isr_dpo.config import Recipe
from isr_dpo.data import rows as row_files
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output
from isr_dpo.records import Prediction, part_name, to_jsonl
from isr_dpo.steps.common import Inputs, StepResult, bundle, metrics_of, reused, rows_of, sealed, test_rows
from isr_dpo.stores import join, read_bytes

log = logging.getLogger("isr_dpo")


class _Given(NamedTuple):
    predictions: list[Prediction]
    digest: str


def import_answers(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """The rows of `answer.predictions` as answers/policy-pp/<set>, where a policy's own would stand.

    Raises:
        DataError: a file is missing, malformed, or answers other questions than the set asks.
    """
    done: dict[str, Manifest] = {}
    metrics: dict[str, float] = {}
    new = False
    for name in recipe.sets_at(index):
        uri = recipe.answer.predictions[name]
        given = _given(uri, key=f"answer.predictions.{name}")
        made_from = {"dataset": inputs["dataset"].digest, "predictions": given.digest}
        out = outputs.begin(
            join(layout.answers(run_uri, index), name), Origin("answers", "answer", made_from, "", prompts_digest="")
        )
        if isinstance(out, Output):
            result = _import_set(inputs["dataset"], given.predictions, uri, out, name)
            new = True
        else:
            result = reused(out)
        done[name] = result.manifest
        metrics |= {f"{name}/{key}": value for key, value in metrics_of(result.manifest).items()}
    return StepResult(bundle("answers", "answer", layout.answers(run_uri, index), done), metrics, reused=not new)


def _given(uri: str, *, key: str) -> _Given:
    made = manifest.find(uri)
    if made is not None:
        return _Given(rows_of(made, Prediction), made.digest)
    predictions = [found.row for found in row_files.read(uri, Prediction, key=key)]
    return _Given(predictions, hashlib.sha256(read_bytes(uri)).hexdigest())


def _import_set(dataset: Manifest, given: list[Prediction], uri: str, out: Output, name: str) -> StepResult:
    rows = test_rows(dataset, name)
    made = answer.imported(given, rows, where=uri)
    for count, what in ((made.missing, "have no prediction"), (made.asked_otherwise, "were put in other words")):
        if count:
            log.warning("%s: of %d questions of %s %d %s", uri, len(rows), name, count, what)
    out.write(part_name(0), to_jsonl(made.rows))
    metrics = answer.metrics(made.rows) | {"missing": made.missing, "asked_otherwise": made.asked_otherwise}
    return sealed(out, metrics, rows=len(made.rows), deterministic=True)
