"""Answer: a policy's greedy answers to a test set, for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.config import Answer
from isr_dpo.engines import Engine, Progress, Sample, Text
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


def metrics(rows: Sequence[Prediction]) -> dict[str, float]:
    """Words an answer, and the rows with an empty answer or none."""
    answers = [row.model_prediction.message for row in rows if row.model_prediction.status == "success"]
    return {
        "rows": len(rows),
        "words": sum(len(text.split()) for text in answers) / max(len(answers), 1),
        "empty": sum(not text for text in answers),
        "not_asked": len(rows) - len(answers),
    }


def _outcome(text: Text) -> Outcome:
    if text.finish in NOT_ASKED:
        return Outcome(status="failed", message=NOT_ASKED[text.finish])
    return Outcome(status="success", message=text.text)
