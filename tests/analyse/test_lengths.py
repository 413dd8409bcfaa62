"""Words of preferences and answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.analyse import form
from isr_dpo.analyse.lengths import Lengths, lengths
from isr_dpo.records import Preference
from tests.analyse.analysed_run import RunFiles, asked_row, judged_row

ROWS = [asked_row(number) for number in range(4)]


def pair(video: str, chosen: str, rejected: str) -> Preference:
    return Preference(id=video, video=video, prompt="what ?", chosen=chosen, rejected=rejected)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path)
    files.dataset({"dev": ROWS}, seeds=[pair("s0", "one two", "one two three four"), pair("s1", "one", "one two")])
    files.round(
        1,
        [
            judged_row("a", "v0", ("one two three", "one"), 0),
            judged_row("b", "v1", ("one two three", "one two three four five"), 1),
            judged_row("c", "v1", ("many words that nobody chose", "some more of them"), None),
        ],
    )
    return files


def test_words_of_chosen_and_rejected_by_round(files: RunFiles) -> None:
    seed, first = lengths(files.open()).rounds
    assert (seed.round, seed.chosen.value, seed.rejected.value) == (0, 1.5, 3.0)
    assert seed.ratio is not None
    assert seed.ratio.value == 0.5
    # round 1: chosen 3 and 5 words, rejected 1 and 3; the tie is in neither
    assert (first.round, first.chosen.value, first.rejected.value) == (1, 4.0, 2.0)
    assert first.ratio is not None
    assert first.ratio.value == 2.0  # a ratio of means; the mean of the ratios 3 and 5/3 would be 2.33
    assert first.chosen.rows == 2


def test_words_of_answers_leave_out_what_was_not_answered(files: RunFiles) -> None:
    files.answers(1, ROWS, ["red", "it is red", None, ""])
    (found,) = lengths(files.open()).sets
    assert (found.set, found.policy, found.unanswered) == ("dev", 1, 1)
    assert found.words is not None
    assert found.words.value == pytest.approx((1 + 3 + 0) / 3)
    assert found.words.clusters == 2


def test_a_run_that_has_only_begun_has_no_lengths_yet(tmp_path: Path) -> None:
    found = lengths(RunFiles(tmp_path, retrospect={"context": "none"}).open())
    assert found == Lengths(run="ours", context="none", rounds=(), sets=())


def test_no_answer_at_all_has_no_length(files: RunFiles) -> None:
    files.answers(2, ROWS, [None] * 4)
    (found,) = lengths(files.open()).sets
    assert (found.words, found.unanswered) == (None, 4)


def test_lengths_come_back_from_their_json(files: RunFiles) -> None:
    files.answers(1, ROWS, ["red", "it is red", None, ""])
    found = lengths(files.open())
    assert form.from_json(Lengths, form.to_json(found), where="here") == found
    assert form.from_json(list[Lengths], form.to_json([found]), where="here") == [found]
