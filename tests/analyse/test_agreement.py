"""Table 4's arithmetic, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from isr_dpo.analyse.agreement import (
    Agreement,
    RunAgreement,
    difference,
    labels_of,
    run_agreement,
    same_pairs,
)
from isr_dpo.analyse.annotators import between, kappa, majority
from isr_dpo.analyse.form import from_json, to_json
from isr_dpo.analyse.tables import agreement as reported
from isr_dpo.analyse.verdicts import alignment, verdict
from isr_dpo.annotate.choices import Choice
from isr_dpo.annotate.sheet import rows_digest
from isr_dpo.records import Judged
from tests.judged_run import judged_row

T_2 = 4.302652729911275  # the 97.5 % point of Student's t with 2 degrees of freedom, from a table
PROBABILITIES = [
    ((0.8, 0.1), (0.6, 0.3)),  # clip 0: P(response 0) = (8/9 + 2/3) / 2: response 0, in both orders
    ((0.3, 0.6), (0.9, 0.1)),  # clip 0: (1/3 + 9/10) / 2: response 0, and response 1 in the first order
    ((0.2, 0.7), (0.1, 0.8)),  # clip 1: response 1, in both orders
    ((0.7, 0.2), (0.2, 0.7)),  # clip 1: exactly 1/2
    ((0.8, 0.1), (0.6, 0.3)),  # clip 2
    ((0.9, 0.05), (0.9, 0.05)),  # clip 2: response 0, in both orders
]
LABELS = {"clip-000_0": "0", "clip-000_1": "1", "clip-001_0": "1", "clip-001_1": "0", "clip-002_0": "tie"} | {
    "clip-002_1": "0"
}


def judged(**changes: Any) -> list[Judged]:
    return [judged_row(number, probabilities=p, **changes) for number, p in enumerate(PROBABILITIES)]


def choices(labels: dict[str, str], *, by: str = "anna", rows: list[Judged] | None = None) -> list[Choice]:
    digest = rows_digest(rows or judged())
    return [
        Choice(
            id=i,
            video=i.partition("_")[0],
            round=1,
            annotator=by,
            shown_first=1,
            choice=int(said) if said in "01" else None,
            outcome="preferred" if said in "01" else said,
            seconds=4.0 + number,
            rows_digest=digest,
        )
        for number, (i, said) in enumerate(labels.items())
    ]


def agreed(labels: dict[str, dict[str, str]], *, rows: list[Judged] | None = None, run: str = "a") -> RunAgreement:
    made = {name: choices(said, by=name, rows=rows) for name, said in labels.items()}
    about = {"run": run, "uri": f"runs/{run}", "round_index": 1, "context": "none", "made_from": {"preferences": "x"}}
    return run_agreement(rows or judged(), made, **about)


def test_the_share_of_choices_that_are_the_label_is_clustered_by_video() -> None:
    (labels,) = agreed({"anna": LABELS}).labels
    judge = labels.judge
    assert (judge.agreed, judge.compared) == (3, 4)
    assert judge.left_out == {"judge: tie": 1, "label: tie": 1}
    # Residuals by clip: 1 + 0 - 1.5, 0.25, 0.25; V = 3/2 * (0.25 + 0.0625 + 0.0625) / 16; reach = 4.30 * 0.1875 > 0.25.
    assert judge.share is not None
    assert (judge.share.value, judge.share.rows, judge.share.clusters) == (0.75, 4, 3)
    assert (judge.share.low, judge.share.high) == (0.0, 1.0)


def test_the_interval_is_the_cluster_robust_one() -> None:
    """40 rows in three clips, the judge right on 15 of 20, 8 of 10, 7 of 10: with residuals from 3/4 the clips sum to
    0, 1/2 and -1/2, so V = 3/2 * 1/2 / 40^2 and the interval reaches 4.3027 * sqrt(V)."""
    right = [(0, 20, 15), (1, 10, 8), (2, 10, 7)]
    rows, labels = {}, {}
    for clip, count, good in right:
        for number in range(count):
            row = judged_row(0, id=f"{clip}-{number}", video=f"clip-{clip}")
            rows[row.id] = row
            labels[row.id] = 0 if number < good else 1
    share = alignment(rows, labels).share
    assert share is not None
    reach = T_2 * (1.5 * 0.5 / 1600) ** 0.5
    assert (share.value, share.low, share.high) == pytest.approx((0.75, 0.75 - reach, 0.75 + reach))


def test_consistency_and_the_liking_for_a_place_are_those_of_the_judge() -> None:
    judge = agreed({"anna": LABELS}).labels[0].judge
    assert judge.consistency is not None
    assert judge.consistency.value == 0.75
    assert judge.consistent_share is not None
    assert (judge.consistent_share.value, judge.consistent_share.rows) == (1.0, 3)
    # Chosen and shown first, of two orders each: 1, 0, 1, 1 of the rows compared.
    assert judge.first_position is not None
    assert (judge.first_position.value, judge.first_position.rows) == (3 / 8, 8)


def test_the_choice_is_that_of_the_averaged_probabilities_whatever_margin_made_a_preference() -> None:
    assert verdict(judged_row(0, outcome="tie", winner=None, probabilities=((0.52, 0.48), (0.5, 0.5)))).side == 0
    inconsistent = judged_row(0, outcome="inconsistent", winner=None, probabilities=((0.2, 0.8), (0.6, 0.4)))
    assert verdict(inconsistent).side == 1
    assert verdict(judged_row(0, probabilities=((0.3, 0.6),), winner=1)).side == 1
    assert verdict(judged_row(0, probabilities=(), winner=1)).side == 1  # the judges `random` and `longer`
    third = 1 / 3
    assert verdict(judged_row(0, probabilities=((third, 2 * third), (2 * third, third)))).reason == "judge: tie"


@pytest.mark.parametrize("outcome", ["unparsed", "hostile", "too_long", "refused"])
def test_a_row_without_a_verdict_is_left_out_and_its_reason_said(outcome: str) -> None:
    probabilities = ((0.0, 0.0), (0.0, 0.0)) if outcome == "unparsed" else ()
    row = judged_row(0, outcome=outcome, winner=None, probabilities=probabilities)
    assert alignment({row.id: row}, {row.id: 0}).left_out == {f"judge: {outcome}": 1}
    assert alignment({row.id: row}, {row.id: 0}).share is None


def test_labels_say_how_they_were_made() -> None:
    (labels,) = agreed({"anna": LABELS}).labels
    assert (labels.by, labels.labelled, labels.ties, labels.unclear, labels.divided) == ("anna", 6, 1, 0, 0)
    assert labels.first_position is not None
    assert labels.first_position.value == 2 / 5  # response 1 stood first each time, and was preferred twice of five
    assert labels.seconds == 6.5
    assert not labels.is_oracle


def test_several_people_make_one_label_and_the_divided_rows_are_left_out() -> None:
    bert = LABELS | {"clip-000_0": "1", "clip-001_0": "unclear", "clip-002_0": "1"}
    found = agreed({"anna": LABELS, "bert": bert, "oracle:rule-based": LABELS})
    people, anna, _, oracle = found.labels
    assert [labels.by for labels in found.labels] == ["people", "anna", "bert", "oracle:rule-based"]
    assert labels_of(found, "people") == {
        "clip-000_0": "label: divided",
        "clip-000_1": 1,
        "clip-001_0": 1,
        "clip-001_1": 0,
        "clip-002_0": 1,
        "clip-002_1": 0,
    }
    assert people.judge.left_out == {"judge: tie": 1, "label: divided": 1}
    assert (people.judge.agreed, people.judge.compared, people.divided) == (2, 4, 1)
    assert (anna.judge, oracle.is_oracle, oracle.seconds) == (oracle.judge, True, None)


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (["0", "0", "1"], 0),
        (["1", "tie", "tie"], 1),
        (["0", "1"], "label: divided"),
        (["tie", "unclear"], "label: tie"),
        (["unclear"], "label: unclear"),
    ],
)
def test_a_majority_is_of_those_who_prefer(said: list[str], label: int | str) -> None:
    assert majority(said) == label


def test_cohens_kappa_is_agreement_beyond_chance() -> None:
    # Agreed 4 of 5; by chance (3 * 2 + 2 * 3) / 25 = 0.48.
    assert kappa(list("00110"), list("01110")) == pytest.approx((0.8 - 0.48) / 0.52)
    assert kappa(list("0011"), list("1100")) == -1.0
    assert kappa(list("0101"), list("0011")) == 0.0
    assert kappa(list("000"), list("000")) is None
    assert kappa([], []) is None


def test_annotators_are_compared_on_the_rows_that_both_decided() -> None:
    a = {choice.id: choice for choice in choices(LABELS)}
    other = {"clip-000_0": "0", "clip-000_1": "0", "clip-001_0": "1", "clip-002_0": "tie", "clip-002_1": "unclear"}
    found = between("anna", a, "bert", {choice.id: choice for choice in choices(other, by="bert")})
    assert found.both_labelled == 5
    assert found.share is not None
    assert (found.share.value, found.share.rows) == (2 / 3, 3)
    assert found.kappa == pytest.approx((2 / 3 - 4 / 9) / (5 / 9))  # 0,1,1 and 0,0,1
    assert found.kappa_with_ties == pytest.approx((3 / 5 - 7 / 25) / (18 / 25))  # 0,1,1,tie,0 and 0,0,1,tie,unclear


def test_labels_of_other_answers_are_not_counted() -> None:
    others = [judged_row(number, responses=("x", "y")) for number in range(6)]
    made = {"anna": choices(LABELS, rows=others), "bert": choices({"clip-000_0": "0"}, by="bert")}
    found = run_agreement(judged(), made, run="a", uri="runs/a", round_index=1, context="none", made_from={})
    assert [labels.by for labels in found.labels] == ["bert"]
    assert found.other_rows == 6
    assert [row.id for row in found.rows] == ["clip-000_0"]


def test_the_same_pairs_are_compared_row_by_row() -> None:
    found = agreed({"anna": LABELS})
    without, with_context = judged(), judged()
    swapped = tuple((q, p) for p, q in PROBABILITIES[1])
    with_context[1] = with_context[1].model_copy(update={"probabilities": swapped})
    with_context[5] = with_context[5].model_copy(update={"outcome": "unparsed", "winner": None})
    same = same_pairs(
        found, without=without, with_context=with_context, shuffled=judged()[::-1], policy=1, contexts_of="b"
    )
    assert same.shuffled == same.without
    assert (same.without.agreed, same.without.compared) == (3, 4)
    assert (same.with_context.agreed, same.with_context.compared) == (3, 3)
    assert same.with_context.left_out == {"judge: tie": 1, "judge: unparsed": 1, "label: tie": 1}
    assert same.changed == 1
    assert same.difference is not None
    assert (same.difference.value, same.difference.rows, same.difference.clusters) == (pytest.approx(1 / 3), 3, 2)


def test_runs_differ_by_their_shares_and_their_common_videos_are_taken_together() -> None:
    """Both runs have the same residuals on the same clips, so the difference is certain though each share is not."""
    rows = judged()
    a = agreed({"anna": LABELS}, run="a")
    b = agreed({"bert": LABELS}, run="b", rows=rows)
    same = difference(a, b)
    assert same is not None
    assert (same.value, same.low, same.high) == pytest.approx((0.0, 0.0, 0.0))
    flipped = LABELS | {"clip-002_1": "1"}
    less = difference(a, agreed({"anna": flipped}, run="c"))
    assert less is not None
    # 2/4 less 3/4. By clip, errors over 4: c has (0, 1/2, -1/2) / 4, a has (-1/2, 1/4, 1/4) / 4; their differences are
    # (1/2, 1/4, -3/4) / 4, so V = 3/2 * (4 + 1 + 9) / 16 / 16.
    reach = T_2 * (1.5 * 14 / 256) ** 0.5
    assert (less.value, less.low, less.high) == pytest.approx((-0.25, -0.25 - reach, -0.25 + reach))


def test_runs_are_compared_by_labels_of_the_same_kind_alone() -> None:
    people, oracle = agreed({"anna": LABELS}), agreed({"oracle:rule-based": LABELS}, run="b")
    assert difference(people, oracle) is None
    assert difference(oracle, agreed({"anna": LABELS, "oracle:rule-based": LABELS})) is not None
    assert difference(oracle, agreed({"oracle:gpt": LABELS})) is None


def test_the_result_is_read_back_as_it_was_written() -> None:
    run = agreed({"anna": LABELS, "bert": LABELS})
    same = same_pairs(run, without=judged(), with_context=judged(), shuffled=judged(), policy=1, contexts_of="b")
    made = Agreement(1, (run,), None, same, reported())
    assert from_json(Agreement, to_json(made), where="x") == made
    assert (made.reported.self_rewarding, made.reported.isr_dpo) == (59.0, 75.0)
    assert made.kind == "agreement"
