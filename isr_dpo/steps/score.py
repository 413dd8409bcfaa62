"""Scores of a prediction file, outside a run: whoever made it, and by a grader or from replies that stand already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isr_dpo import answer, manifest, outputs
from isr_dpo.config import SECTIONS, Evaluate, Recipe
from isr_dpo.data import rows as row_files
from isr_dpo.data.captions import with_captions
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Reply, grades, open_grader, open_protocol
from isr_dpo.evaluate.grades import GradedBy
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.progress import Progress
from isr_dpo.records import Grade, Identified, Prediction, TestRow
from isr_dpo.steps.common import StepResult, reused, rows_of
from isr_dpo.stores import Missing, join, read_bytes

STORED = "stored replies"
"""Stands for the grader of replies that nobody says who gave them."""


@dataclass(frozen=True)
class Replies:
    """A grader's replies by the prediction's id, from a file or an evaluation."""

    by_id: Mapping[str, Reply]
    by: GradedBy
    protocol: str | None
    """None: the file does not say."""
    words: Mapping[str, int]
    """Of the predictions they are to, where known."""
    digest: str


class PublicReply(Identified):
    """A row of the public scripts' result files [C]: `response` is missing, or null, where there was none."""

    response: str | None = None


def score(recipe: Recipe, out_uri: str, *, replies: Replies | None = None) -> StepResult:
    """Grades the one prediction file of the benchmark `recipe` into <out>/grades; what was bought for it is accounted
    for in <out>. With `replies` nobody is asked: they are read again, as evaluate.reading says.

    Raises:
        DataError: a file is missing or malformed, or the files do not belong together.
        OutsideError: the grader stays away; the same call goes on from what stands.
    """
    ((name, rows_uri),) = recipe.data.sets.items()
    asked, protocol = recipe.evaluate, open_protocol(recipe.protocol(name))
    located = row_files.unique(row_files.read(rows_uri, TestRow, key="--rows"))
    rows = [found.row for found in (with_captions(located) if protocol.needs_caption else located)]
    uri = recipe.answer.predictions[name]
    given = [found.row for found in row_files.read(uri, Prediction, key="predictions")]
    predictions = answer.imported(given, rows, where=uri).rows
    if replies is not None:
        _check(replies, predictions, protocol.name)
    made_from = {"predictions": _digest(uri), "rows": _digest(rows_uri)}
    out = outputs.begin(join(out_uri, "grades"), _origin(recipe, name, made_from, replies))
    if isinstance(out, Manifest):
        return reused(out)
    if replies is not None:
        metrics = grades.regrade(
            predictions,
            rows,
            replies.by_id,
            replies.by,
            protocol=protocol,
            reading=asked.reading,
            output=out,
        )
    else:
        metrics = grades.evaluate(
            predictions,
            rows,
            open_grader(asked, run_uri=out_uri),
            protocol=protocol,
            reading=asked.reading,
            output=out,
            rows_per_part=len(rows) if asked.batch else recipe.engine.rows_per_part,
            progress=Progress("score", len(rows), "answers"),
        )
    sealed = out.seal(rows=len(rows), deterministic=replies is not None or asked.grader == "rules")
    return StepResult(sealed, metrics, reused=False)


def read_replies(uri: str) -> Replies:
    """The replies of an evaluation (its directory), or of a public result file: JSONL rows of `id` and `response`.

    Raises:
        DataError: there is neither, or a row is malformed.
    """
    made = manifest.find(uri)
    if made is None:
        if not uri.endswith(".jsonl"):
            raise DataError(f"{uri}: no finished evaluation there (a {manifest.MANIFEST}), and no .jsonl file")
        found = [located.row for located in row_files.unique(row_files.read(uri, PublicReply, key="--replies"))]
        return Replies(
            {row.id: _public(row) for row in found}, GradedBy(STORED, None, None), None, {}, digest=_digest(uri)
        )
    if grades.PROTOCOL not in made.files:
        raise DataError(f"{uri} is no evaluation: it has no {grades.PROTOCOL}")
    said = _said(made)
    graded = [grade for grade in rows_of(made, Grade) if grade.reason != "no_answer"]
    return Replies(
        {grade.id: _stored(grade) for grade in graded},
        GradedBy(said["grader"], said["model"], said["prompt_digest"]),
        said["protocol"],
        {grade.id: grade.words for grade in graded},
        digest=made.digest,
    )


def _public(row: PublicReply) -> Reply:
    return Reply("", failure="no reply") if row.response is None else Reply(row.response)


def _said(made: Manifest) -> dict[str, Any]:
    """What its protocol.json says."""
    tree: dict[str, Any] = json.loads((manifest.files(made, {grades.PROTOCOL}) / grades.PROTOCOL).read_bytes())
    return tree


def _stored(grade: Grade) -> Reply:
    failed = grade.reason == "no_reply"
    return Reply(
        "" if failed else grade.reply,
        failure=grade.reply if failed else None,
        model=grade.model,
        prompt_tokens=grade.prompt_tokens,
        completion_tokens=grade.completion_tokens,
        cost_usd=grade.cost_usd,
        key=grade.key,
    )


def _check(replies: Replies, predictions: Sequence[Prediction], protocol: str) -> None:
    """Raises DataError where the replies are to other answers, or of another protocol."""
    if replies.protocol not in (None, protocol):
        raise DataError(f"the replies are of the {replies.protocol} protocol, not of {protocol}; say --protocol")
    for made in predictions:
        words = len(made.model_prediction.message.split())
        if made.model_prediction.status == "success" and replies.words.get(made.id, words) != words:
            raise DataError(
                f"prediction {made.id!r} has {words} words, the one that was replied to had {replies.words[made.id]}: "
                "the replies are to other predictions"
            )


def _origin(recipe: Recipe, name: str, made_from: Mapping[str, str], replies: Replies | None) -> Origin:
    asked: Evaluate = recipe.evaluate
    protocol = open_protocol(recipe.protocol(name))
    if replies is not None:
        made_from = {**made_from, "replies": replies.digest}
    section = {"reading": asked.reading} if replies is not None else recipe.section(SECTIONS["evaluate"])
    shown = replies is None and asked.grader != "rules"
    return Origin(
        kind="evaluation",
        step="evaluate",
        inputs=dict(sorted(made_from.items())),
        recipe_section_digest=canonical_digest({"protocol": protocol.name, **section}),
        prompts_digest=protocol.prompt_digest if shown else "",
    )


def _digest(uri: str) -> str:
    try:
        return hashlib.sha256(read_bytes(uri)).hexdigest()
    except Missing:
        raise DataError(f"there is no {uri}") from None
