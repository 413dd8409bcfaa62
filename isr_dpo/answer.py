"""Answer: a policy's greedy answers to a test set, for evaluation; or another system's, from its prediction file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo.config import Answer
from isr_dpo.engines import Engine, Progress, Sample, Text
from isr_dpo.errors import DataError
from isr_dpo.prompts import Template
from isr_dpo.records import NOT_ASKED, Outcome, Prediction, TestRow


def answer(
    rows: Sequence[TestRow],
    engine: Engine,
    *,
    template: Template,
    settings: Answer,
    progress: Progress = lambda _: None,
) -> list[Prediction]:
    """A prediction for each question; one that could not be asked has failed and says why."""
    requests = [
        Sample(row.video, template.render(question=row.question), (0,), 0.0, 1.0, settings.max_new_tokens)
        for row in rows
    ]
    return [
        Prediction(
            id=row.id,
            modal_path=row.video,
            query=row.question,
            answer=row.answer,
            model_prediction=_outcome(text),
        )
        for row, (text,) in zip(rows, engine.sample(requests, progress), strict=True)
    ]


class Imported(NamedTuple):
    """Predictions of another system: one a row, in the rows' order. `missing` are rows that its file lacks; they have
    failed, so they are unscored. `asked_otherwise` are those whose query does not hold the row's question."""

    rows: list[Prediction]
    missing: int
    asked_otherwise: int


def imported(given: Sequence[Prediction], rows: Sequence[TestRow], *, where: str) -> Imported:
    """Fits the predictions of the file `where` to the rows of a set, by id.

    Raises:
        DataError: an id that no row has or that stands twice, a ground truth that is not the row's, or no prediction.
    """
    by_id = {row.id: row for row in rows}
    found: dict[str, Prediction] = {}
    for made in given:
        row = by_id.get(made.id)
        if row is None:
            raise DataError(f"{where}: prediction {made.id!r} answers no question of this set of {len(rows)}")
        if made.id in found:
            raise DataError(f"{where}: prediction {made.id!r} stands twice")
        if _plain(made.answer) != _plain(row.answer):
            raise DataError(
                f"{where}: prediction {made.id!r} has the ground truth {made.answer!r}, the set has {row.answer!r}: it "
                "was made for another version of the set"
            )
        found[made.id] = made
    if not found:
        raise DataError(f"{where}: no prediction in it")
    otherwise = sum(_plain(by_id[i].question) not in _plain(made.query) for i, made in found.items())
    fitted = [found.get(row.id) or _missing(row) for row in rows]
    return Imported(fitted, missing=len(rows) - len(found), asked_otherwise=otherwise)


def metrics(rows: Sequence[Prediction]) -> dict[str, float]:
    """Words an answer, and the rows with an empty answer or none."""
    answers = [row.model_prediction.message for row in rows if row.model_prediction.status == "success"]
    return {
        "rows": len(rows),
        "words": sum(len(text.split()) for text in answers) / max(len(answers), 1),
        "empty": sum(not text for text in answers),
        "not_asked": len(rows) - len(answers),
    }


def _missing(row: TestRow) -> Prediction:
    outcome = Outcome(status="failed", message="the prediction file has no such row")
    return Prediction(id=row.id, modal_path=row.video, query=row.question, answer=row.answer, model_prediction=outcome)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _outcome(text: Text) -> Outcome:
    if text.finish in NOT_ASKED:
        return Outcome(status="failed", message=NOT_ASKED[text.finish])
    return Outcome(status="success", message=text.text)
