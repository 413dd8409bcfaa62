"""Two systems on the same questions: what changed from the first to the second, and whether it is more than chance.

A question counts where both answers are scored: an unscored answer is never wrong, so it is no loss either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isr_dpo.errors import DataError
from isr_dpo.evaluate.statistics import Difference, paired_difference
from isr_dpo.records import Grade


@dataclass(frozen=True)
class Flips:
    """Ids of questions whose answer changed sides, sorted."""

    to_right: tuple[str, ...]
    """Wrong in the first, right in the second."""
    to_wrong: tuple[str, ...]
    """Right in the first, wrong in the second."""


@dataclass(frozen=True)
class Comparison:
    """The second system against the first, over the `rows` questions that are scored in both.

    Differences are second minus first, by a bootstrap over videos (statistics.py): accuracies between -1 and 1, scores
    in the protocol's points. `left_out` are questions that one of them has no score for, or does not have at all.
    """

    accuracy: Difference
    score: Difference
    accuracies: tuple[float, float]
    """Of the first and the second, over the paired rows alone."""
    scores: tuple[float, float]
    rows: int
    left_out: tuple[int, int]
    """Questions without a score in the first, and in the second; one unscored in both counts in both."""
    flips: Flips


def compare(grades_a: Sequence[Grade], grades_b: Sequence[Grade], *, seed: int = 0) -> Comparison:
    """Compares the grades of two systems' answers to the same questions, made by the same grader in the same way.

    Raises:
        DataError: no question is scored in both, or an id belongs to another video in one than in the other.
    """
    a, b = _scored(grades_a), _scored(grades_b)
    ids = {grade.id for grade in (*grades_a, *grades_b)}
    common = sorted(a.keys() & b.keys())
    if not common:
        raise DataError(
            f"nothing to compare: of {len(ids)} questions {len(a)} are scored in the first, {len(b)} in the second, "
            "none in both"
        )
    for i in common:
        if a[i].video != b[i].video:
            raise DataError(f"question {i!r} is about {a[i].video!r} in the first and {b[i].video!r} in the second")
    videos = {i: a[i].video for i in common}

    def difference(value: Callable[[Grade], float]) -> Difference:
        return paired_difference({i: value(b[i]) for i in common}, {i: value(a[i]) for i in common}, videos, seed=seed)

    def means(value: Callable[[Grade], float]) -> tuple[float, float]:
        return sum(value(a[i]) for i in common) / len(common), sum(value(b[i]) for i in common) / len(common)

    return Comparison(
        accuracy=difference(_correct),
        score=difference(_score),
        accuracies=means(_correct),
        scores=means(_score),
        rows=len(common),
        left_out=(len(ids - a.keys()), len(ids - b.keys())),
        flips=Flips(
            to_right=tuple(i for i in common if b[i].correct and not a[i].correct),
            to_wrong=tuple(i for i in common if a[i].correct and not b[i].correct),
        ),
    )


def _scored(grades: Sequence[Grade]) -> dict[str, Grade]:
    return {grade.id: grade for grade in grades if grade.status == "scored"}


def _correct(grade: Grade) -> float:
    return float(bool(grade.correct))


def _score(grade: Grade) -> float:
    assert grade.score is not None
    return grade.score
