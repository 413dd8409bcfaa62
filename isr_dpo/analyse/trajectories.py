"""What becomes of a video over the rounds: its descriptions c_1 .. c_T, the responses chosen for it, the answers to
questions about it (Figures 7 and 8). Data with the changes marked word by word; nothing is judged here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from isr_dpo.analyse.differences import Words, changes
from isr_dpo.analyse.runs import Run
from isr_dpo.errors import DataError
from isr_dpo.records import Judged, TestRow, seed_for


@dataclass(frozen=True)
class Description:
    """c_t of a video (Figure 7)."""

    round: int
    text: str
    changes: tuple[Words, ...]
    """The text in runs of words: those that c_(t-1) has not are `added`."""


@dataclass(frozen=True)
class Response:
    """What a round drew for a training question, and what its judge chose."""

    round: int
    outcome: str
    """`preferred`, or why there is no preference."""
    chosen: str | None
    rejected: str | None
    changes: tuple[Words, ...]
    """The chosen response; words that the last chosen one has not are `added`."""


@dataclass(frozen=True)
class TrainingQuestion:
    id: str
    question: str
    responses: tuple[Response, ...]
    """By round."""


@dataclass(frozen=True)
class VideoOverRounds:
    """A training video."""

    video: str
    descriptions: tuple[Description, ...]
    """By round: none where the judge sees none, one where the first is kept (`fixed`)."""
    questions: tuple[TrainingQuestion, ...]


@dataclass(frozen=True)
class Answer:
    """A policy's answer to a test question (Figure 8)."""

    policy: int
    text: str
    words: int
    changes: tuple[Words, ...]
    """Words that the answer of the policy before has not are `added`."""
    correct: bool | None
    """None: unscored, or not graded."""


@dataclass(frozen=True)
class TestQuestion:
    """A question of an evaluation set."""

    __test__ = False

    id: str
    video: str
    question: str
    truth: str
    caption: str
    """Ground truth; empty where the set has none."""
    answers: tuple[Answer, ...]
    """By policy."""


@dataclass(frozen=True)
class Trajectories:
    """Of one run. The same seed over the same rows chooses the same videos, so two runs stand side by side."""

    run: str
    context: str
    set: str
    videos: tuple[VideoOverRounds, ...]
    questions: tuple[TestQuestion, ...]
    grader: str | None
    """Who says `correct`."""


def trajectories(
    run: Run, *, name: str | None = None, videos: Sequence[str] = (), count: int = 3, seed: int = 0
) -> Trajectories:
    """The trajectories of `videos`, each a training video or one of the set `name` (None: the leading one, dev, which
    every policy answers); without `videos`, of `count` training videos and `count` questions of the set, drawn by
    `seed`.

    Raises:
        DataError: no such set, or a video that neither the training rows nor the set have.
        CorruptOutput: a file differs from its manifest.
    """
    name = name or run.recipe.leading_set
    rows = run.test_rows(name)
    trained = sorted({question.video for question in run.questions()})
    if videos:
        known = {*trained, *(row.video for row in rows)}
        lost = [video for video in videos if video not in known]
        if lost:
            raise DataError(f"{run.uri}: no video {lost[0]!r} among the training rows or the set {name}")
        shown = [video for video in videos if video in trained]
        asked = [row for row in rows if row.video in videos]
    else:
        shown, asked = _drawn(trained, count, seed), _drawn_rows(rows, count, seed)
    answers, grader = _answers(run, name, asked)
    return Trajectories(run.name, run.context, name, _over_rounds(run, shown), answers, grader)


def _drawn(videos: Sequence[str], count: int, seed: int) -> list[str]:
    return random.Random(seed_for(seed, "trajectories")).sample(videos, min(count, len(videos)))


def _drawn_rows(rows: Sequence[TestRow], count: int, seed: int) -> list[TestRow]:
    """One question each of `count` videos."""
    by_video: dict[str, list[TestRow]] = {}
    for row in sorted(rows, key=lambda row: row.id):
        by_video.setdefault(row.video, []).append(row)
    videos = _drawn(sorted(by_video), count, seed)
    return [random.Random(seed_for(seed, "question", video)).choice(by_video[video]) for video in videos]


def _over_rounds(run: Run, videos: Sequence[str]) -> tuple[VideoOverRounds, ...]:
    descriptions: dict[str, list[Description]] = {video: [] for video in videos}
    judged: dict[str, dict[str, list[tuple[int, Judged]]]] = {video: {} for video in videos}
    for index in run.rounds:
        for context in run.contexts(index) or []:
            if context.video in descriptions:
                before = descriptions[context.video][-1].text if descriptions[context.video] else None
                step = Description(index, context.context, changes(before, context.context))
                descriptions[context.video].append(step)
        for row in run.judged(index) or []:
            if row.video in judged:
                judged[row.video].setdefault(row.id, []).append((index, row))
    return tuple(
        VideoOverRounds(video, tuple(descriptions[video]), tuple(map(_question, judged[video].values())))
        for video in videos
    )


def _question(rows: Sequence[tuple[int, Judged]]) -> TrainingQuestion:
    responses: list[Response] = []
    before: str | None = None
    for index, row in rows:
        if row.winner is None:
            responses.append(Response(index, row.outcome, None, None, ()))
            continue
        chosen, rejected = row.responses[row.winner], row.responses[1 - row.winner]
        responses.append(Response(index, row.outcome, chosen, rejected, changes(before, chosen)))
        before = chosen
    return TrainingQuestion(rows[0][1].id, rows[0][1].prompt, tuple(responses))


def _answers(run: Run, name: str, rows: Sequence[TestRow]) -> tuple[tuple[TestQuestion, ...], str | None]:
    answers: dict[str, list[Answer]] = {row.id: [] for row in rows}
    graders: list[str] = []
    for policy in run.policies:
        graded = run.graded(policy, name)
        correct = {grade.id: grade.correct for grade in graded.grades} if graded else {}
        graders += [graded.grader.label] if graded else []
        for made in run.predictions(policy, name) or []:
            if made.id in answers and made.model_prediction.status == "success":
                text, before = made.model_prediction.message, answers[made.id][-1:]
                marked = changes(before[0].text if before else None, text)
                answers[made.id].append(Answer(policy, text, len(text.split()), marked, correct.get(made.id)))
    questions = (
        TestQuestion(row.id, row.video, row.question, row.answer, row.caption or "", tuple(answers[row.id]))
        for row in rows
    )
    return tuple(questions), " and ".join(dict.fromkeys(graders)) or None
