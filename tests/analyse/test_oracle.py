"""Choices by the grader: what it is asked, and what its replies come to."""

from __future__ import annotations

import pytest

from isr_dpo.analyse.oracle import Told, choose, name_of
from isr_dpo.analyse.win_rate_protocol import format_reply
from isr_dpo.annotate.sheet import rows_digest, sheet
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Reply
from isr_dpo.evaluate.protocol import Task
from isr_dpo.evaluate.rules import RuleBasedGrader
from tests.analyse.scripted import Scripted
from tests.judged_run import judged_row

JUDGED = [judged_row(number, responses=(f"good {number}", f"bad {number}")) for number in range(20)]
TRUTHS = {row.id: f"truth of {row.id}" for row in JUDGED}


def told(say: Scripted, rows: int = 20) -> Told:
    return choose(JUDGED, TRUTHS, say, round_index=1, rows=rows, seed=0)


def good(task: Task) -> str:
    return format_reply("x", "1" if task.prediction.startswith("good") else "2")


def test_the_named_answer_is_chosen_wherever_it_stood() -> None:
    grader = Scripted(good)
    made = told(grader)
    assert {choice.choice for choice in made.choices} == {0}
    assert {choice.shown_first for choice in made.choices} == {0, 1}
    assert {(c.outcome, c.annotator, c.round, c.seconds) for c in made.choices} == {
        ("preferred", "oracle:gpt-x", 1, 0.0)
    }
    assert {choice.rows_digest for choice in made.choices} == {rows_digest(JUDGED)}
    assert name_of(RuleBasedGrader()) == "oracle:rule-based"


def test_each_pair_is_asked_in_both_orders_with_the_truth_and_no_caption() -> None:
    grader = Scripted(good)
    told(grader, rows=3)
    assert len(grader.tasks) == 6
    for first, second in zip(grader.tasks[::2], grader.tasks[1::2], strict=True):
        assert (first.prediction, first.other) == (second.other, second.prediction)
        assert first.truth == second.truth in TRUTHS.values()
        assert first.caption == ""


def test_orders_that_disagree_and_ties_are_ties() -> None:
    assert {c.outcome for c in told(Scripted(lambda task: format_reply("x", "1"))).choices} == {"tie"}
    assert {c.outcome for c in told(Scripted(lambda task: format_reply("x", "tie"))).choices} == {"tie"}


@pytest.mark.parametrize("reply", ["the first one", "", Reply("", failure="refused"), '{"nearer": "1"}'])
def test_what_cannot_be_read_is_unclear_and_prefers_nothing(reply: str | Reply) -> None:
    made = told(Scripted(lambda task: reply if task.prediction.startswith("bad") else good(task)))
    assert {(c.outcome, c.choice) for c in made.choices} == {("unclear", None)}


def test_the_rows_are_those_that_people_label() -> None:
    made = told(Scripted(good), rows=7)
    assert [c.id for c in made.choices] == [item.id for item in sheet(JUDGED, rows=7, seed=0, annotator="anna")]


def test_what_was_bought_is_counted() -> None:
    made = told(
        Scripted(lambda task: Reply(good(task), bought=task.prediction.startswith("bad"), cost_usd=0.5)), rows=4
    )
    assert (made.bill.asked, made.bill.bought, made.bill.cost_usd) == (8, 4, 2.0)


def test_a_row_without_truth_is_named() -> None:
    with pytest.raises(DataError, match="20 of 20 rows have no ground truth, the first is"):
        choose(JUDGED, {}, Scripted(good), round_index=1, rows=99, seed=0)
