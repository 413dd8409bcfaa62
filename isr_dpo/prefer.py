"""Prefer: generate, retrospect and judge fused, for an engine that keeps the prompts it has computed.

A video's answers, its description and its verdicts all begin with the same tokens: the fixed text and the video. Asked
stage by stage, the video is long forgotten when its judge is asked; asked while it is in hand, it is computed once
(reference: 162 TFLOP of prefill a pair in separate calls, 101 by stage, 44 fused [D]). An engine that takes calls side
by side has `engine.fused_videos` videos in hand, each at a stage of its own, and takes up the next when one is done.
Another goes through the stages with so many at a time. The rows are those of the three stages: an engine is a pure
function of its requests.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from isr_dpo.config import Recipe
from isr_dpo.engines import Engine, Progress
from isr_dpo.generate import generate
from isr_dpo.judge import judge
from isr_dpo.mapped import mapped
from isr_dpo.prompts import Prompts
from isr_dpo.records import Context, Judged, Question, Responses, Row
from isr_dpo.retrospect import retrospect


class Asked(NamedTuple):
    """A video with its questions, in the order of the data."""

    video: str
    questions: tuple[Question, ...]


class Earlier(NamedTuple):
    """What earlier rounds have said of the videos, by video."""

    previous: Mapping[str, str]
    """c_(t-1), to be refined; empty where videos are described afresh."""
    contexts: Mapping[str, str] | None
    """Contexts that stand for this round too (`fixed`); nothing is described then."""


class Preferred(Row):
    """All that a round makes of one video. `context` is absent where nothing is described."""

    video: str
    responses: tuple[Responses, ...]
    context: Context | None = None
    judged: tuple[Judged, ...]


class Stages(NamedTuple):
    """A round's rows as the three stages give them: responses and verdicts in the order of the data, contexts in that
    of each video's first question."""

    responses: list[Responses]
    contexts: list[Context]
    judged: list[Judged]


def by_video(rows: Sequence[Question]) -> list[Asked]:
    """The rows gathered by video, videos in order of their first row."""
    groups: dict[str, list[Question]] = defaultdict(list)
    for row in rows:
        groups[row.video].append(row)
    return [Asked(video, tuple(questions)) for video, questions in groups.items()]


def prefer(
    videos: Sequence[Asked],
    engine: Engine,
    *,
    earlier: Earlier,
    recipe: Recipe,
    prompts: Prompts,
    round_index: int,
    progress: Progress = lambda _: None,
) -> list[Preferred]:
    """Answers, description and verdicts of each video. A `shuffled` context is no design for this: its judge needs the
    contexts of all videos first.

    `progress` counts videos.
    """
    in_hand = recipe.engine.fused_videos
    lanes, size = (in_hand, 1) if engine.side_by_side else (1, in_hand)
    chunks = [videos[start : start + size] for start in range(0, len(videos), size)]
    ask = functools.partial(
        _ask, engine=engine, earlier=earlier, recipe=recipe, prompts=prompts, round_index=round_index
    )
    made = mapped(ask, chunks, threads=lanes, done=lambda number: progress(len(chunks[number])))
    return [preferred for rows in made for preferred in rows]


def _ask(
    videos: Sequence[Asked], *, engine: Engine, earlier: Earlier, recipe: Recipe, prompts: Prompts, round_index: int
) -> list[Preferred]:
    """The three stages, one after the other."""
    rows = [question for asked in videos for question in asked.questions]
    held: dict[str, Any] = {"seed": recipe.seed, "round_index": round_index}
    responses = generate(rows, engine, template=prompts.answer, settings=recipe.generate, **held)
    described: dict[str, Context] = {}
    if describes(recipe, earlier):
        names = [asked.video for asked in videos]
        made = retrospect(names, engine, previous=earlier.previous, prompts=prompts, settings=recipe.retrospect, **held)
        described = {row.video: row for row in made}
    contexts = {video: row.context for video, row in described.items()} or earlier.contexts
    judged = judge(responses, engine, contexts=contexts, prompts=prompts, settings=recipe.judge, **held)
    return _gathered(videos, responses, described, judged)


def describes(recipe: Recipe, earlier: Earlier) -> bool:
    """Whether this round makes contexts of its own."""
    return recipe.retrospect.context != "none" and earlier.contexts is None


def _gathered(
    videos: Sequence[Asked],
    responses: Sequence[Responses],
    described: Mapping[str, Context],
    judged: Sequence[Judged],
) -> list[Preferred]:
    drawn, said = iter(responses), iter(judged)
    return [
        Preferred(
            video=video,
            responses=tuple(next(drawn) for _ in questions),
            context=described.get(video),
            judged=tuple(next(said) for _ in questions),
        )
        for video, questions in videos
    ]


def by_stage(rows: Sequence[Question], made: Sequence[Preferred]) -> Stages:
    """What `prefer` made of all videos of `rows`, in the order in which the three stages would have written it."""
    drawn: dict[str, Iterator[Responses]] = {preferred.video: iter(preferred.responses) for preferred in made}
    said: dict[str, Iterator[Judged]] = {preferred.video: iter(preferred.judged) for preferred in made}
    return Stages(
        responses=[next(drawn[row.video]) for row in rows],
        contexts=[preferred.context for preferred in made if preferred.context is not None],
        judged=[next(said[row.video]) for row in rows],
    )
