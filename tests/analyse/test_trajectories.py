"""Texts about a video over the rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo.analyse import form
from isr_dpo.analyse.differences import Words
from isr_dpo.analyse.trajectories import Trajectories, trajectories
from isr_dpo.errors import DataError
from tests.analyse.analysed_run import RunFiles, asked_row, judged_row

ROWS = [asked_row(number) for number in range(6)]
CLIPS = [f"clip{number}" for number in range(5)]


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    files = RunFiles(tmp_path)
    files.dataset({"dev": ROWS}, train=[(f"t{n}", f"clip{n}") for n in range(5)])
    files.round(1, [judged_row("t0", "clip0", ("a dog", "a cat"), 0)], dict.fromkeys(CLIPS, "a fish"))
    files.round(2, [judged_row("t0", "clip0", ("a dog", "a dog runs"), 1)], dict.fromkeys(CLIPS, "a red fish"))
    files.answers(1, ROWS, ["red"] * 6)
    files.answers(2, ROWS, ["a red ball"] * 6)
    files.grades(1, ROWS, [5, 1, None, 5, 5, 5])
    return files


def test_a_training_video_with_its_descriptions_and_chosen_responses(files: RunFiles) -> None:
    (video,) = trajectories(files.open(), videos=["clip0"]).videos
    first, second = video.descriptions
    assert (first.round, first.text, first.changes) == (1, "a fish", (Words("a fish"),))
    assert second.changes == (Words("a"), Words("red", "added"), Words("fish"))
    (question,) = video.questions
    assert [(r.round, r.chosen, r.rejected) for r in question.responses] == [
        (1, "a dog", "a cat"),
        (2, "a dog runs", "a dog"),
    ]
    assert question.responses[1].changes == (Words("a dog"), Words("runs", "added"))


def test_a_test_video_with_the_answers_of_all_policies(files: RunFiles) -> None:
    found = trajectories(files.open(), videos=["v0"])
    assert found.grader == "rule-based grader (no model)"
    assert found.videos == ()
    assert [question.id for question in found.questions] == ["q0", "q1"]
    old, new = found.questions[1].answers
    assert (old.policy, old.text, old.correct) == (1, "red", False)
    assert (new.policy, new.words, new.correct) == (2, 3, None)
    assert new.changes == (Words("a", "added"), Words("red"), Words("ball", "added"))


def test_an_unscored_answer_is_neither_right_nor_wrong(files: RunFiles) -> None:
    (question, _) = trajectories(files.open(), videos=["v1"]).questions
    assert question.id == "q2"
    assert question.answers[0].correct is None


def test_the_same_seed_draws_the_same_videos_in_two_runs(files: RunFiles, tmp_path: Path) -> None:
    other = RunFiles(tmp_path, "other", retrospect={"context": "none"})
    other.dataset({"dev": ROWS}, train=[(f"t{n}", f"clip{n}") for n in reversed(range(5))])
    other.round(1, [judged_row("t0", "clip0", ("a dog", "a cat"), None)])
    for seed in range(4):
        a, b = (trajectories(one.open(), count=2, seed=seed) for one in (files, other))
        assert [video.video for video in a.videos] == [video.video for video in b.videos]
        assert [question.id for question in a.questions] == [question.id for question in b.questions]
        assert len({question.video for question in a.questions}) == 2
    draws = {tuple(v.video for v in trajectories(files.open(), count=2, seed=s).videos) for s in range(12)}
    assert len(draws) > 3


def test_a_dropped_row_says_why(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.dataset({"dev": ROWS}, train=[("t0", "clip0")])
    files.round(1, [judged_row("t0", "clip0", ("a dog", "a cat"), None)])
    (video,) = trajectories(files.open()).videos
    assert video.descriptions == ()
    (response,) = video.questions[0].responses
    assert (response.outcome, response.chosen, response.changes) == ("tie", None, ())


def test_more_videos_than_there_are_gives_all(files: RunFiles) -> None:
    found = trajectories(files.open(), count=99)
    assert len(found.videos) == 5
    assert len(found.questions) == 3


def test_an_unknown_video_and_an_unknown_set_are_named(files: RunFiles) -> None:
    with pytest.raises(DataError, match="no video 'clip9' among the training rows or the set dev"):
        trajectories(files.open(), videos=["clip9"])
    with pytest.raises(DataError, match="no evaluation set 'tset'; its sets: dev"):
        trajectories(files.open(), name="tset")


def test_trajectories_come_back_from_their_json(files: RunFiles) -> None:
    found = trajectories(files.open())
    assert form.from_json(Trajectories, form.to_json(found), where="here") == found
