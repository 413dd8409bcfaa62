"""evaluate: predictions in, grades and figures out. A pure function over a Grader, resumable by part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Progress, Reply
from isr_dpo.evaluate.compat import READINGS, Reading
from isr_dpo.evaluate.protocol import ScoringProtocol, Task
from isr_dpo.evaluate.statistics import clustered_mean
from isr_dpo.outputs import Output
from isr_dpo.parts import work_in_parts
from isr_dpo.records import UNSCORED, Grade, Prediction, TestRow, part_name, to_jsonl

METRICS = "metrics.json"
PROTOCOL = "protocol.json"
How = Literal["strict", "compat"]
HOWS: tuple[How, ...] = ("strict", "compat")
Reason = Literal["no_answer", "no_reply", "unreadable"]


class GradedBy(NamedTuple):
    """Who replied, and to which prompt; `model` is as asked for, None where no model was asked, or nobody knows."""

    grader: str
    model: str | None
    prompt_digest: str | None


def evaluate(
    predictions: Sequence[Prediction],
    rows: Sequence[TestRow],
    grader: Grader,
    *,
    protocol: ScoringProtocol,
    output: Output,
    rows_per_part: int,
    reading: How = "strict",
    progress: Progress = lambda _: None,
) -> dict[str, float]:
    """Grades one set's predictions into `output` and returns the figures of all.

    Writes part-*.jsonl (records.Grade, in the order of `predictions`), each as soon as it is graded, so that an
    interruption costs the part in hand and no finished part is graded twice; then metrics.json and protocol.json.
    `progress` is called with the number of rows just done.

    Raises:
        DataError: predictions and rows do not belong together, or a row has no caption and the protocol needs one.
        OutsideError: the grader stays away; finished parts are kept.
    """
    by_id = _matched(predictions, rows)

    def work(part: Sequence[Prediction], grader: Grader, progress: Callable[[int], None]) -> list[Grade]:
        return grade(part, by_id, grader, protocol=protocol, reading=reading, progress=progress)

    grades = work_in_parts(
        predictions,
        output,
        rows_per_part=rows_per_part,
        row_type=Grade,
        workers=lambda: [grader],
        work=work,
        progress=progress,
    )
    by = GradedBy(grader.name, grader.model, None if grader.model is None else protocol.prompt_digest)
    return _conclude(grades, by, protocol=protocol, reading=reading, output=output)


def regrade(
    predictions: Sequence[Prediction],
    rows: Sequence[TestRow],
    replies: Mapping[str, Reply],
    by: GradedBy,
    *,
    protocol: ScoringProtocol,
    output: Output,
    reading: How,
) -> dict[str, float]:
    """`evaluate` without asking anybody: `replies`, by the prediction's id, are those that `by` gave before. Without
    one a prediction is unscored.

    Raises:
        DataError: predictions and rows do not belong together.
    """
    by_id = _matched(predictions, rows)
    none = Reply("", failure="there is no reply to this one")
    reply_of = {p.id: replies.get(p.id, none) for p in predictions if p.model_prediction.status == "success"}
    grades = graded(predictions, by_id, reply_of, protocol=protocol, reading=reading)
    output.write(part_name(0), to_jsonl(grades))
    return _conclude(grades, by, protocol=protocol, reading=reading, output=output)


def grade(
    predictions: Sequence[Prediction],
    rows: Mapping[str, TestRow],
    grader: Grader,
    *,
    protocol: ScoringProtocol,
    reading: How = "strict",
    progress: Progress = lambda _: None,
) -> list[Grade]:
    """A grade for each prediction, in order. A failed prediction is not sent."""
    answered = [p for p in predictions if p.model_prediction.status == "success"]
    progress(len(predictions) - len(answered))
    replies = grader.grade(protocol, [_task(p, rows[p.id], protocol) for p in answered], progress)
    reply_of = {p.id: reply for p, reply in zip(answered, replies, strict=True)}
    return graded(predictions, rows, reply_of, protocol=protocol, reading=reading)


def graded(
    predictions: Sequence[Prediction],
    rows: Mapping[str, TestRow],
    replies: Mapping[str, Reply],
    *,
    protocol: ScoringProtocol,
    reading: How,
) -> list[Grade]:
    """A grade for each prediction, in order, from the replies by their ids; one without has not been sent."""
    return [
        _grade(p, rows[p.id].video, replies.get(p.id), read=lambda text: read(text, protocol, reading))
        for p in predictions
    ]


def read(reply: str, protocol: ScoringProtocol, how: How) -> Reading:
    """What a reply says in one of the two readings."""
    if how == "compat":
        return READINGS[protocol.name](reply)
    mark = protocol.read(reply)
    return Reading(None, None) if mark is None else Reading(mark.score, mark.correct)


def measure(grades: Sequence[Grade], *, protocol: ScoringProtocol) -> dict[str, float]:
    """The figures of a set.

    rows, scored, unscored, and unscored_<reason> for each of records.UNSCORED; words (mean, of answers that are not
    empty); accuracy and score as the grades hold them, each with `_low` and `_high`, its 95 % interval clustered by
    video; <reading>_accuracy and _score of both readings, with the number of replies each is over (_accuracy_rows,
    _score_rows) and _scored, of those that have both; and of the grader bought, cost_usd, prompt_tokens and
    completion_tokens of what was bought. A figure over no reply is left out.
    """
    scored = [g for g in grades if g.status == "scored"]
    counts = {"rows": len(grades), "scored": len(scored), "unscored": len(grades) - len(scored)}
    counts |= {f"unscored_{reason}": sum(g.reason == reason for g in grades) for reason in UNSCORED}
    metrics = {name: float(count) for name, count in counts.items()}
    words = [g.words for g in grades if g.words]
    metrics["words"] = sum(words) / len(words) if words else 0.0
    right = [(float(g.correct), g.video) for g in grades if g.correct is not None]
    points = [(g.score, g.video) for g in grades if g.score is not None]
    metrics |= _interval("accuracy", right, (0.0, 1.0)) | _interval("score", points, protocol.score_range)
    for how in HOWS:
        metrics |= _figures(how, [read(g.reply, protocol, how) for g in grades if _replied(g)])
    bought = {g.key or g.id: g for g in grades if g.bought}.values()  # equal answers share one reply
    metrics["bought"] = float(len(bought))
    for name in ("cost_usd", "prompt_tokens", "completion_tokens"):
        metrics[name] = float(sum(getattr(g, name) for g in bought))
    return metrics


def describe(grades: Iterable[Grade], by: GradedBy, *, protocol: ScoringProtocol, reading: How) -> dict[str, Any]:
    """Who graded, and how: what makes two figures comparable."""
    return {
        "protocol": protocol.name,
        "grader": by.grader,
        "model": by.model,
        "served_models": sorted({g.model for g in grades if g.model is not None}),
        "prompt_digest": by.prompt_digest,
        "reading": reading,
    }


def _conclude(
    grades: Sequence[Grade], by: GradedBy, *, protocol: ScoringProtocol, reading: How, output: Output
) -> dict[str, float]:
    metrics = measure(grades, protocol=protocol)
    output.write(METRICS, _json(metrics))
    output.write(PROTOCOL, _json(describe(grades, by, protocol=protocol, reading=reading)))
    return metrics


def _interval(name: str, values: Sequence[tuple[float, str]], within: tuple[float, float]) -> dict[str, float]:
    """A mean and its interval, inside the scale, unless (compat) the values themselves are not."""
    if not values:
        return {}
    numbers = [value for value, _ in values]
    found = clustered_mean(numbers, [video for _, video in values])
    found = found.within(min(within[0], *numbers), max(within[1], *numbers))
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}


def _figures(how: How, readings: Sequence[Reading]) -> dict[str, float]:
    right = [float(r.correct) for r in readings if r.correct is not None]
    points = [r.score for r in readings if r.score is not None]
    figures = {f"{how}_scored": float(sum(r.correct is not None and r.score is not None for r in readings))}
    for name, values in (("accuracy", right), ("score", points)):
        figures[f"{how}_{name}_rows"] = float(len(values))
        if values:
            figures[f"{how}_{name}"] = sum(values) / len(values)
    return figures


def _replied(grade: Grade) -> bool:
    return grade.reason in (None, "unreadable")


def _task(prediction: Prediction, row: TestRow, protocol: ScoringProtocol) -> Task:
    if row.caption is None and protocol.needs_caption:
        raise DataError(f"row {row.id!r} has no caption, which the {protocol.name} protocol needs")
    return Task(
        caption=row.caption if row.caption and protocol.needs_caption else "",
        question=row.question,
        truth=row.answer,
        prediction=prediction.model_prediction.message,
    )


def _grade(prediction: Prediction, video: str, reply: Reply | None, *, read: Callable[[str], Reading]) -> Grade:
    message = prediction.model_prediction.message
    if reply is None:
        return Grade(
            id=prediction.id, video=video, words=0, status="unscored", reason="no_answer", reply=f"no answer: {message}"
        )
    score, correct = (None, None) if reply.failure is not None else read(reply.text)
    scored = score is not None and correct is not None
    reason: Reason = "unreadable" if reply.failure is None else "no_reply"
    return Grade(
        id=prediction.id,
        video=video,
        score=score,
        correct=correct,
        words=len(message.split()),
        status="scored" if scored else "unscored",
        reason=None if scored else reason,
        reply=reply.text if reply.failure is None else reply.failure,
        model=reply.model,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cost_usd=reply.cost_usd,
        bought=reply.bought,
        key=reply.key,
    )


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
