"""evaluate: predictions in, grades and figures out. A pure function over a Grader, resumable by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Reply
from isr_dpo.evaluate.protocol import ScoringProtocol, Task
from isr_dpo.evaluate.statistics import clustered_mean
from isr_dpo.manifest import Output
from isr_dpo.parts import work_in_parts
from isr_dpo.records import Grade, Prediction, TestRow

METRICS = "metrics.json"
PROTOCOL = "protocol.json"


def evaluate(
    predictions: Sequence[Prediction],
    rows: Sequence[TestRow],
    grader: Grader,
    *,
    protocol: ScoringProtocol,
    output: Output,
    rows_per_part: int,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, float]:
    """Grades one set's predictions into `output` and returns the figures of all.

    Writes part-*.jsonl (records.Grade, in the order of `predictions`), each as soon as it is graded, so that an
    interruption costs the part in hand and no finished part is graded twice; then metrics.json and protocol.json.
    `progress` is called with the number of rows just done.

    Raises:
        DataError: predictions and rows do not belong together, or a row has no caption.
        OutsideError: the grader stays away; finished parts are kept.
    """
    by_id = _matched(predictions, rows)

    def work(part: Sequence[Prediction], grader: Grader, progress: Callable[[int], None]) -> list[Grade]:
        return grade(part, by_id, grader, protocol=protocol, progress=progress)

    grades = work_in_parts(
        predictions,
        output,
        rows_per_part=rows_per_part,
        row_type=Grade,
        workers=lambda: [grader],
        work=work,
        progress=progress,
    )
    metrics = measure(grades, protocol=protocol)
    output.write(METRICS, _json(metrics))
    output.write(PROTOCOL, _json(describe(grader, protocol)))
    return metrics


def grade(
    predictions: Sequence[Prediction],
    rows: Mapping[str, TestRow],
    grader: Grader,
    *,
    protocol: ScoringProtocol,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Grade]:
    """A grade for each prediction, in order. A failed prediction and a reply that cannot be read are unscored."""
    answered = [p for p in predictions if p.model_prediction.status == "success"]
    progress(len(predictions) - len(answered))
    replies = grader.grade(protocol, [_task(p, rows[p.id], protocol) for p in answered], progress)
    reply_of = {p.id: reply for p, reply in zip(answered, replies, strict=True)}
    return [_grade(p, rows[p.id].video, reply_of.get(p.id), protocol) for p in predictions]


def measure(grades: Sequence[Grade], *, protocol: ScoringProtocol) -> dict[str, float]:
    """rows, scored, unscored, words (mean, of answers that are not empty); and where any is scored accuracy and score,
    each with `_low` and `_high`, its 95 % interval clustered by video."""
    scored = [g for g in grades if g.status == "scored"]
    counts = {"rows": len(grades), "scored": len(scored), "unscored": len(grades) - len(scored)}
    metrics = {name: float(count) for name, count in counts.items()}
    words = [g.words for g in grades if g.words]
    metrics["words"] = sum(words) / len(words) if words else 0.0
    if not scored:
        return metrics
    videos = [g.video for g in scored]
    accuracy = clustered_mean([float(bool(g.correct)) for g in scored], videos).within(0.0, 1.0)
    score = clustered_mean([float(g.score or 0.0) for g in scored], videos).within(*protocol.score_range)
    for name, interval in (("accuracy", accuracy), ("score", score)):
        metrics |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return metrics


def describe(grader: Grader, protocol: ScoringProtocol) -> dict[str, str | None]:
    """Who graded, and how: what makes two figures comparable."""
    return {
        "protocol": protocol.name,
        "grader": grader.name,
        "model": grader.model,
        "prompt_digest": None if grader.model is None else protocol.prompt_digest,
    }


def _task(prediction: Prediction, row: TestRow, protocol: ScoringProtocol) -> Task:
    if row.caption is None and protocol.needs_caption:
        raise DataError(f"row {row.id!r} has no caption, which the {protocol.name} protocol needs")
    return Task(
        caption=row.caption if row.caption and protocol.needs_caption else "",
        question=row.question,
        truth=row.answer,
        prediction=prediction.model_prediction.message,
    )


def _grade(prediction: Prediction, video: str, reply: Reply | None, protocol: ScoringProtocol) -> Grade:
    message = prediction.model_prediction.message
    if reply is None:
        return _unscored(prediction.id, video, words=0, why=f"no answer: {message}")
    words = len(message.split())
    if reply.failure is not None:
        return _unscored(prediction.id, video, words=words, why=reply.failure)
    mark = protocol.read(reply.text)
    if mark is None:
        return _unscored(prediction.id, video, words=words, why=reply.text)
    return Grade(
        id=prediction.id,
        video=video,
        score=mark.score,
        correct=mark.correct,
        words=words,
        status="scored",
        reply=reply.text,
    )


def _unscored(row_id: str, video: str, *, words: int, why: str) -> Grade:
    return Grade(id=row_id, video=video, score=None, correct=None, words=words, status="unscored", reply=why)


def _matched(predictions: Sequence[Prediction], rows: Sequence[TestRow]) -> dict[str, TestRow]:
    """Rows by id. Raises DataError unless there is exactly one prediction a row."""
    by_id = {row.id: row for row in rows}
    ids = [p.id for p in predictions]
    wrong = {
        "asked twice": len(rows) - len(by_id),
        "answered twice": len(ids) - len(set(ids)),
        "not answered": len(by_id.keys() - set(ids)),
        "answered and never asked": len(set(ids) - by_id.keys()),
    }
    found = [f"{count} {what}" for what, count in wrong.items() if count]
    if found:
        raise DataError(f"{len(ids)} predictions do not fit {len(rows)} questions: {', '.join(found)}")
    return by_id


def _json(tree: Mapping[str, object]) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()
