"""Prefer: the rows of the three stages, asked a few videos at a time, or side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from isr_dpo import prompts
from isr_dpo.config import Recipe
from isr_dpo.engines import Choose, Sample
from isr_dpo.engines.fake import FakeEngine
from isr_dpo.errors import ModelError
from isr_dpo.generate import generate
from isr_dpo.judge import judge
from isr_dpo.prefer import Earlier, Preferred, Stages, by_stage, by_video, prefer
from isr_dpo.records import Question, read_rows, to_jsonl
from isr_dpo.retrospect import retrospect

ROWS = [Question(id=f"q{i}", video=f"v{i % 3}", prompt=f"what is {i} ?") for i in range(7)]
LMM = prompts.load("lmm")
DESCRIBED = {f"v{i}": f"an earlier text of {i}" for i in range(3)}


def recipe_for(context: str = "retrospective", **engine: Any) -> Recipe:
    tree = {
        "name": "small",
        "model": {"start": "builtin:world", "registered_name": "small"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.qa.jsonl"}},
        "retrospect": {"context": context},
        "engine": {"kind": "fake", **engine},
    }
    return Recipe.model_validate(tree)


class Recorder(FakeEngine):
    """Notes the videos of every request, in order."""

    def __init__(self) -> None:
        self.videos: list[str] = []

    def sample(self, requests: Sequence[Sample], progress: Any = lambda _: None) -> Any:
        self.videos += [request.video for request in requests]
        return super().sample(requests, progress)

    def choose(self, requests: Sequence[Choose], progress: Any = lambda _: None) -> Any:
        self.videos += [request.video for request in requests]
        return super().choose(requests, progress)


class SideBySide(FakeEngine):
    """Answers calls of several threads, and notes how many videos were in hand at once and when each was begun. Of the
    first `together` none goes on before all are there."""

    side_by_side = True

    def __init__(self, together: int = 1) -> None:
        self.begun: list[str] = []
        self.in_hand: set[str] = set()
        self.most = 0
        self._mutex, self._meeting = threading.Lock(), threading.Barrier(together)

    def sample(self, requests: Sequence[Sample], progress: Any = lambda _: None) -> Any:
        video = requests[0].video
        with self._mutex:
            first = video not in self.begun and len(self.begun) < self._meeting.parties
            self.begun += [video] * (video not in self.begun)
            self.in_hand.add(video)
            self.most = max(self.most, len(self.in_hand))
        if first:
            self._meeting.wait(timeout=60)
        time.sleep(0.02)
        if video == "fail":
            raise ModelError("no memory for this")
        return super().sample(requests, progress)

    def choose(self, requests: Sequence[Choose], progress: Any = lambda _: None) -> Any:
        self.in_hand.discard(requests[0].video)
        return super().choose(requests, progress)


def fused(recipe: Recipe, earlier: Earlier, engine: FakeEngine | None = None, **options: Any) -> list[Preferred]:
    held = {"recipe": recipe, "prompts": LMM, "round_index": 2, "earlier": earlier, **options}
    return prefer(by_video(ROWS), engine or FakeEngine(), **held)


def three_stages(recipe: Recipe, earlier: Earlier) -> Stages:
    held = {"seed": recipe.seed, "round_index": 2}
    responses = generate(ROWS, FakeEngine(), template=LMM.answer, settings=recipe.generate, **held)
    made, contexts = [], earlier.contexts
    if contexts is None and recipe.retrospect.context != "none":
        videos = list(dict.fromkeys(row.video for row in ROWS))
        made = retrospect(
            videos, FakeEngine(), previous=earlier.previous, prompts=LMM, settings=recipe.retrospect, **held
        )
        contexts = {row.video: row.context for row in made}
    return Stages(
        responses, made, judge(responses, FakeEngine(), contexts=contexts, prompts=LMM, settings=recipe.judge, **held)
    )


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("in_hand", [1, 2, 32])
@pytest.mark.parametrize(
    ("context", "earlier"),
    [
        ("retrospective", Earlier({}, None)),
        ("retrospective", Earlier(DESCRIBED, None)),
        ("renew", Earlier({}, None)),
        ("fixed", Earlier({}, DESCRIBED)),
        ("none", Earlier({}, None)),
    ],
)
def test_the_rows_are_those_of_the_three_stages(
    context: str, earlier: Earlier, in_hand: int, side_by_side: bool
) -> None:
    recipe = recipe_for(context, fused_videos=in_hand)
    made = fused(recipe, earlier, SideBySide() if side_by_side else FakeEngine())
    assert by_stage(ROWS, made) == three_stages(recipe, earlier)


def test_a_video_is_done_with_before_the_next_one_is_asked_about() -> None:
    engine = Recorder()
    fused(recipe_for(fused_videos=1), Earlier({}, None), engine)
    assert list(dict.fromkeys(engine.videos)) == ["v0", "v1", "v2"]
    assert engine.videos == sorted(engine.videos)


def test_a_videos_questions_are_asked_side_by_side_within_a_stage() -> None:
    engine = Recorder()
    fused(recipe_for("none"), Earlier({}, None), engine)
    assert engine.videos[: len(ROWS)] == sorted(row.video for row in ROWS)


def test_side_by_side_so_many_videos_are_in_hand_and_the_next_is_begun_when_one_is_done() -> None:
    engine = SideBySide(together=3)
    rows = [Question(id=f"q{i}", video=f"v{i}", prompt=f"what is {i} ?") for i in range(9)]
    recipe = recipe_for(fused_videos=3)
    made = prefer(by_video(rows), engine, earlier=Earlier({}, None), recipe=recipe, prompts=LMM, round_index=1)
    assert [preferred.video for preferred in made] == [row.video for row in rows]
    assert engine.most == 3
    assert set(engine.begun[:3]) == {"v0", "v1", "v2"}


def test_side_by_side_the_first_error_ends_it_and_nothing_more_is_begun() -> None:
    engine = SideBySide()
    videos = ["fail", *(f"v{i}" for i in range(200))]
    rows = [Question(id=video, video=video, prompt="what ?") for video in videos]
    with pytest.raises(ModelError, match="no memory"):
        prefer(
            by_video(rows),
            engine,
            earlier=Earlier({}, None),
            recipe=recipe_for(fused_videos=2),
            prompts=LMM,
            round_index=1,
        )
    assert len(engine.begun) < 100


def test_rows_survive_the_file_that_they_are_kept_in() -> None:
    made = fused(recipe_for(), Earlier(DESCRIBED, None))
    assert list(read_rows(to_jsonl(made).decode().split("\n"), Preferred, where="part")) == made


def test_progress_counts_every_video_once_and_not_all_at_the_end() -> None:
    counted: list[int] = []
    fused(recipe_for(fused_videos=2), Earlier({}, None), progress=counted.append)
    assert counted == [2, 1]
