from __future__ import annotations

import pytest

from isr_dpo.errors import DataError
from isr_dpo.evaluate.comparison import compare
from isr_dpo.evaluate.statistics import paired_difference
from isr_dpo.records import Grade

VIDEOS = {"q1": "v1", "q2": "v1", "q3": "v2", "q4": "v3", "q5": "v3"}


def graded(**scores: float | None) -> list[Grade]:
    """Caption grades: correct from 3 on; None is unscored."""
    return [
        Grade(
            id=key,
            video=VIDEOS[key],
            score=score,
            correct=None if score is None else score >= 3,
            words=1,
            status="unscored" if score is None else "scored",
            reply="",
        )
        for key, score in scores.items()
    ]


A = graded(q1=5, q2=2, q3=1, q4=4, q5=None)
B = graded(q1=4, q2=3, q3=None, q4=2, q5=5)


def test_what_is_unscored_in_one_is_left_out_and_counted() -> None:
    made = compare(A, B)
    assert made.rows == 3
    assert made.left_out == (1, 1)
    assert made.accuracies == (2 / 3, 2 / 3)
    assert made.scores == pytest.approx((11 / 3, 9 / 3))


def test_flips_go_from_the_first_to_the_second() -> None:
    flips = compare(A, B).flips
    assert (flips.to_right, flips.to_wrong) == (("q2",), ("q4",))
    back = compare(B, A).flips
    assert (back.to_right, back.to_wrong) == (flips.to_wrong, flips.to_right)


def test_differences_are_second_minus_first_by_the_bootstrap_over_videos() -> None:
    made = compare(A, B)
    scores = paired_difference({"q1": 4.0, "q2": 3.0, "q4": 2.0}, {"q1": 5.0, "q2": 2.0, "q4": 4.0}, VIDEOS)
    assert made.score == scores
    assert made.score.mean == pytest.approx(-2 / 3)
    assert (made.accuracy.mean, made.accuracy.rows, made.accuracy.clusters) == (0.0, 3, 2)


def test_a_question_that_only_one_has_is_left_out_of_the_other() -> None:
    made = compare(graded(q1=5), B)
    assert made.rows == 1
    assert made.left_out == (4, 1)


def test_nothing_in_common_is_refused_with_the_counts() -> None:
    with pytest.raises(DataError, match="of 2 questions 1 are scored in the first, 1 in the second, none in both"):
        compare(graded(q1=5), graded(q2=5))


def test_an_id_that_means_another_video_is_refused() -> None:
    moved = [grade.model_copy(update={"video": "elsewhere"}) for grade in B]
    with pytest.raises(DataError, match="question 'q1' is about 'v1' in the first and 'elsewhere' in the second"):
        compare(A, moved)
