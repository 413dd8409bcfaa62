"""The tables of one run's page, as data."""

from __future__ import annotations

import pytest
import synthetic_run
from synthetic_run import finish, metrics, recipe

from isr_dpo import layout
from isr_dpo.report import differences, headline, health
from isr_dpo.report.data import RunData
from isr_dpo.report.reading import KeptRun
from isr_dpo.report.tables import Table, seconds


def data_of(run_uri: str, **changes: object) -> RunData:
    return synthetic_run.page(run_uri, **changes).runs[0]


@pytest.fixture(scope="module")
def whole(whole_run: str) -> RunData:
    return data_of(whole_run)


def lines(table: Table | None) -> list[str]:
    assert table is not None
    return [" ".join(f"{c.text} {c.sub}".strip() for c in (row.head, *row.cells)) for row in table.rows]


def test_the_headline_table_says_every_figure(whole: RunData) -> None:
    assert lines(headline.table([whole]))[2] == (
        "policy-03 best on dev 66.7 % 58.0–75.3 3.67 3.32–4.01 1 of 40 rule-based grader (no model) 9.0 86.0 % 90.0 % "
        "32 of 40 identical 2, empty 2, tie 2, unparsed 2"
    )


def test_the_verdict_gives_the_best_policy_beside_the_first(whole: RunData) -> None:
    assert headline.verdict(whole) == (
        "policy-03 answers 66.7 % (58.0–75.3) of dev correctly, the best so far; policy-01 answered 53.8 % (47.6–60.1)."
    )


def test_tiles_hold_the_paired_gain_what_was_unscored_and_the_time(whole: RunData) -> None:
    tiles = {tile.what: tile for tile in headline.tiles(whole)}
    assert tiles["correct on dev, policy-03"].text == "66.7 %"
    assert tiles["points since policy-01"].text == "+12.8"
    assert tiles["answers unscored"].text == "1 of 40"
    assert tiles["of work by all steps"].text == "2 min 33 s"


def test_every_figure_on_a_set_stands_beside_its_unscored(whole: RunData) -> None:
    first, second, _ = lines(headline.sets_table([whole]))
    assert first.count("1 of 40 unscored") == 2
    assert second.endswith("1 of 40 unscored –")


def test_a_set_of_which_nothing_is_scored_has_no_accuracy(run_uri: str) -> None:
    protocol = {"protocol.json": synthetic_run.protocol("rule-based", None)}
    finish(
        layout.graded(run_uri, 1, "caption", "dev"), {**metrics(rows=5, scored=0, unscored=5, words=3.0), **protocol}
    )
    assert lines(headline.table([data_of(run_uri)]))[0].startswith("policy-01 none scored – 5 of 5")


@pytest.mark.parametrize(
    ("grader", "model", "label"),
    [("rule-based", None, "rule-based grader (no model)"), ("gpt-4o-mini", "gpt-4o-mini", "graded by gpt-4o-mini")],
)
def test_whoever_graded_is_named(run_uri: str, grader: str, model: str | None, label: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1, grader=grader, model=model)
    assert data_of(run_uri).grader == label


def test_two_graders_of_a_run_are_both_named_and_not_compared(run_uri: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1)
    synthetic_run.write_evaluation(run_uri, 2, grader="gpt-4o-mini", model="gpt-4o-mini")
    data = data_of(run_uri)
    assert data.grader == "rule-based grader (no model) and graded by gpt-4o-mini"
    assert "gpt-4o-mini by the caption protocol" in headline.different_graders([data])[0]
    assert "not compared graded differently" in lines(differences.within(data.run))[0]


def test_policies_are_compared_on_the_same_questions(whole: RunData) -> None:
    second, third, on_test = lines(differences.within(whole.run))
    assert second.startswith("policy-02 before: policy-01 +7.7")
    assert second.endswith("3 of 39 0 of 39 –")
    assert third.startswith("policy-03 before: policy-02 +12.8")
    assert "6 of 39 1 of 39 +5.1" in third
    assert on_test.startswith("policy-03 before: policy-01 +12.8")


def test_a_single_policy_has_nothing_to_be_compared_with(run_uri: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1)
    assert differences.within(KeptRun(run_uri, recipe(), "smoke")) is None


def test_the_judge_s_figures_stand_beside_their_guards(whole: RunData) -> None:
    assert lines(health.judge([whole]))[1] == (
        "round 2 90.0 % limit 0 % 80.0 % limit 5 % 11.0 × 1.10, limit 4 8.5 5.0 % 56.0 % 90.0 % "
        "identical 2, empty 2, tie 2, unparsed 2"
    )


def test_a_figure_beyond_its_guard_is_toned(whole_run: str) -> None:
    strict = {"min_order_consistency": 0.85, "max_chosen_growth": 1.05, "min_pair_fraction": 0.5}
    table = health.judge([data_of(whole_run, guards=strict)])
    assert table is not None
    assert [[cell.tone for cell in row.cells[:3]] for row in table.rows] == [["bad", "", ""], ["", "", "bad"]]


def test_the_grader_s_table_says_why_answers_are_unscored_and_what_replies_cost(run_uri: str) -> None:
    synthetic_run.write_evaluation(run_uri, 1, grader="gpt-4o-mini", model="gpt-4o-mini")
    assert lines(health.grader([data_of(run_uri)]))[0] == (
        "policy-01 dev gpt-4o-mini caption protocol 39 of 40 1 unreadable 1 52.5 % 52.5 % 40 $0.40 4,000 and 400 out"
    )


def test_training_stands_in_a_table_with_what_the_export_keeps_and_how_fast_it_was(whole: RunData) -> None:
    seed, _, second = lines(health.training([whole]))
    assert seed == "seed DPO 300 30 0.690 0.400 0.800 – – – –", "of a run that did not measure them yet"
    assert second == "round 2 300 12 0.690 0.400 0.800 43.0 % 12.35 52.0 % 1.92"


def test_every_step_says_how_long_it_took_and_how_fast_it_was(whole: RunData) -> None:
    found = lines(health.clock(whole))
    assert found[0] == "seed DPO 20 s 32 pairs 1.6 1"
    assert found[2] == "round 1 · generate 30 s 40 questions 1.3 1"
    assert found[-1] == "policy-01 · evaluate 3.0 s – – 1 (OutsideError)"


def test_pods_count_as_long_as_the_slowest(run_uri: str) -> None:
    from isr_dpo import times

    for share, spent in ((1, 10.0), (2, 30.0), (0, 5.0)):
        figures = {} if share else {"rows": 70.0}
        times.record(run_uri, "generate", 1, started=1.7e9, seconds=spent, share=share, metrics=figures)
    assert lines(health.clock(data_of(run_uri))) == ["round 1 · generate 35 s 2 pods 70 questions 2.0 1"]


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.5, "0.5 s"), (75.2, "75 s"), (153, "2 min 33 s"), (5399, "89 min 59 s"), (7500, "2 h 05 min")],
)
def test_lengths_of_time_are_said_in_the_unit_that_suits_them(value: float, said: str) -> None:
    assert seconds(value) == said
