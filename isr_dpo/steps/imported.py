"""Answers by a system that is not run here, from its prediction files: the step answer of such a benchmark."""

from __future__ import annotations

import hashlib
import logging

from isr_dpo import answer, layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError
from isr_dpo.manifest import Manifest, Origin, Output
from isr_dpo.records import Prediction, TestRow, part_name, read_files, read_rows, to_jsonl
from isr_dpo.steps.common import Inputs, StepResult, bundle, metrics_of, reused, sealed
from isr_dpo.stores import Missing, join, read_bytes

log = logging.getLogger("isr_dpo")


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
        content = _read(uri, key=f"answer.predictions.{name}")
        made_from = {"dataset": inputs["dataset"].digest, "predictions": hashlib.sha256(content).hexdigest()}
        out = manifest.begin(
            join(layout.answers(run_uri, index), name), Origin("answers", "answer", made_from, "", prompts_digest="")
        )
        if isinstance(out, Output):
            result = _import_set(inputs["dataset"], content, uri, out, name)
            new = True
        else:
            result = reused(out)
        done[name] = result.manifest
        metrics |= {f"{name}/{key}": value for key, value in metrics_of(result.manifest).items()}
    return StepResult(bundle("answers", "answer", layout.answers(run_uri, index), done), metrics, reused=not new)


def _import_set(dataset: Manifest, content: bytes, uri: str, out: Output, name: str) -> StepResult:
    file = f"set-{name}.jsonl"
    rows = read_files(manifest.files(dataset, {file}), [file], TestRow)
    given = read_rows(content.decode("utf-8-sig").split("\n"), Prediction, where=uri)
    made = answer.imported(list(given), rows, where=uri)
    for count, what in ((made.missing, "have no prediction"), (made.asked_otherwise, "were put in other words")):
        if count:
            log.warning("%s: of %d questions of %s %d %s", uri, len(rows), name, count, what)
    out.write(part_name(0), to_jsonl(made.rows))
    metrics = answer.metrics(made.rows) | {"missing": made.missing, "asked_otherwise": made.asked_otherwise}
    return sealed(out, metrics, rows=len(made.rows), deterministic=True)


def _read(uri: str, *, key: str) -> bytes:
    try:
        return read_bytes(uri)
    except Missing:
        raise DataError(f"{key}: there is no {uri}") from None
