import random
from pathlib import Path

import pytest
import synthetic_run
from synthetic_run import judged_row, recipe

from isr_dpo.records import Judged
from isr_dpo.report.reading import KeptRun
from isr_dpo.report.samples import Sample, choose, gather

COUNT = 12
ROWS = [judged_row(number, 1, "a disc", "context") for number in range(40)]


def shown(row: Judged, *, before: str | None = None, after: str | None = None) -> Sample:
    return Sample(KeptRun("nowhere", recipe(), "smoke"), 1, row, before, after)


def share(row: Judged) -> float:
    return sum(p / (p + q) for p, q in row.probabilities) / len(row.probabilities)


def test_a_dozen_rows_hold_every_reason_and_mostly_preferences() -> None:
    chosen = choose(ROWS, count=COUNT)
    assert len(chosen) == COUNT == len({row.id for row in chosen})
    assert [row.outcome for row in chosen] == ["preferred"] * 8 + ["empty", "identical", "tie", "unparsed"]


def test_preferences_go_from_the_surest_choice_to_the_closest_call() -> None:
    sureness = [abs(share(row) - 0.5) for row in choose(ROWS, count=COUNT) if row.outcome == "preferred"]
    assert sureness == sorted(sureness, reverse=True)
    assert sureness[0] - sureness[-1] > 0.2


def test_preferences_show_different_videos_where_there_are_enough() -> None:
    videos = [row.video for row in choose(ROWS, count=COUNT) if row.outcome == "preferred"]
    assert len(set(videos)) == len(videos)


def test_the_choice_does_not_depend_on_the_order_of_rows() -> None:
    mixed = random.Random(0).sample(ROWS, len(ROWS))
    assert choose(mixed, count=COUNT) == choose(ROWS, count=COUNT)


def test_a_short_round_is_shown_whole() -> None:
    assert {row.id for row in choose(ROWS[:5], count=COUNT)} == {row.id for row in ROWS[:5]}
    assert choose([], count=COUNT) == []


def test_dropped_rows_fill_up_where_few_are_preferred() -> None:
    dropped = [row for row in ROWS if row.outcome != "preferred"]
    preferred = [row for row in ROWS if row.outcome == "preferred"][:1]
    chosen = choose([*dropped, *preferred], count=COUNT)
    assert len(chosen) == min(COUNT, len(dropped) + 1)


def test_rounds_share_a_page_the_latest_first(tmp_path: Path) -> None:
    for index in (1, 2):
        synthetic_run.write_round(str(tmp_path), index, "a disc")
    found = gather([KeptRun(str(tmp_path), recipe(), "smoke")], count=24)
    assert [one.round for one in found.shown] == [2] * 12 + [1] * 12
    assert found.judged == 80
    assert found.shown[0].before is not None
    assert found.shown[-1].before is None


def test_probabilities_of_both_orders_are_normalised_and_averaged() -> None:
    found = shown(ROWS[0].model_copy(update={"probabilities": ((0.6, 0.2), (0.1, 0.3))}))
    assert [order.share for order in found.orders] == pytest.approx([0.75, 0.25])
    assert found.share == pytest.approx(0.5)
    assert found.swayed


def test_a_choice_that_the_order_does_not_change_is_not_swayed() -> None:
    assert not shown(ROWS[0].model_copy(update={"probabilities": ((0.6, 0.2), (0.5, 0.3))})).swayed
    assert not shown(ROWS[3]).swayed, "nobody was asked"


def test_a_verdict_without_label_mass_has_no_share() -> None:
    assert shown(ROWS[0].model_copy(update={"probabilities": ((0.0, 0.0), (0.0, 0.0))})).share is None


def test_differences_mark_what_refinement_added_and_removed() -> None:
    changes = shown(ROWS[0], before="red circle blue square", after="red circle green square moving").changes
    assert [tuple(vars(w).values()) for w in changes.before] == [
        ("red circle", ""),
        ("blue", "removed"),
        ("square", ""),
    ]
    assert [w.text for w in changes.after if w.mark == "added"] == ["green", "moving"]
