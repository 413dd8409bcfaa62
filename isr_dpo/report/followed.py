"""A few videos and questions followed over the iterations (Figures 7 and 8), and answers with their claims (Figure 2),
runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isr_dpo import layout
from isr_dpo.analyse.claims import Claims, Examined, Piece, pieces
from isr_dpo.analyse.differences import changes
from isr_dpo.analyse.trajectories import Answer, TestQuestion, VideoOverRounds
from isr_dpo.report.data import Page, RunData
from isr_dpo.report.flips import Answered, Question
from isr_dpo.report.headline import graded_by
from isr_dpo.report.pictures import Strip

EXAMPLES = 3


@dataclass(frozen=True)
class FollowedVideo:
    """A training video with what each run made of it."""

    video: str
    strip: Strip | None
    runs: tuple[tuple[str, VideoOverRounds], ...]


@dataclass(frozen=True)
class FollowedQuestion:
    """A test question with each run's answers."""

    strip: Strip | None
    asked: TestQuestion
    runs: tuple[tuple[str, TestQuestion], ...]


@dataclass(frozen=True)
class ExaminedAnswer:
    """A policy's answer cut where its claims begin and end."""

    policy: str
    pieces: tuple[Piece, ...]
    unsupported: int


@dataclass(frozen=True)
class ClaimsExample:
    """A question whose answers gained or kept unsupported claims, from the first policy to the last."""

    where: str
    examined: Examined
    answers: tuple[ExaminedAnswer, ...]


def videos(page: Page) -> list[FollowedVideo]:
    """The training videos that are followed; a video that several runs follow stands once."""
    made: dict[str, FollowedVideo] = {}
    for data in page.runs:
        for one in data.trajectories.videos if data.trajectories else ():
            before = made.get(one.video)
            strip = page.pictures.of(data.run, one.video) if before is None else before.strip
            runs = (*(before.runs if before else ()), (data.name, one))
            made[one.video] = FollowedVideo(one.video, strip, runs)
    return [one for one in made.values() if any(found.descriptions or found.questions for _, found in one.runs)]


def questions(page: Page) -> list[FollowedQuestion]:
    """The test questions that are followed: of those whose answers changed sides the first few of the page's choice,
    and where there are none questions drawn by chance."""
    flipped = [_flipped(page, one) for one in page.flips.questions if _leads(page, one)][:EXAMPLES]
    return flipped or _drawn(page)


def _leads(page: Page, one: Question) -> bool:
    """Whether the question is of a leading set, and changed sides within a run."""
    if one.set not in {data.summary.dev for data in page.runs}:
        return False
    return any(len({a.correct for _, a in _of_run(page, one, data) if a.correct is not None}) > 1 for data in page.runs)


def _of_run(page: Page, one: Question, data: RunData) -> list[tuple[int, Answered]]:
    """A run's answers by policy."""
    pairs = zip(page.flips.systems, one.answers, strict=True)
    return [(system.policy, answer) for system, answer in pairs if system.run is data.run and answer is not None]


def _flipped(page: Page, one: Question) -> FollowedQuestion:
    runs = []
    for data in page.runs:
        answers: list[Answer] = []
        for policy, answer in _of_run(page, one, data):
            marked = changes(answers[-1].text if answers else None, answer.text)
            answers.append(Answer(policy, answer.text, len(answer.text.split()), marked, answer.correct))
        if answers:
            asked = TestQuestion(one.id, one.video, one.text, one.truth, "", tuple(answers))
            runs.append((data.name, asked))
    return FollowedQuestion(page.pictures.of(one.run, one.video), runs[0][1], tuple(runs))


def _drawn(page: Page) -> list[FollowedQuestion]:
    made: dict[tuple[str, str, str], FollowedQuestion] = {}
    for data in page.runs:
        for one in data.trajectories.questions if data.trajectories else ():
            key = (one.id, one.question, one.truth)
            before = made.get(key)
            strip = page.pictures.of(data.run, one.video) if before is None else before.strip
            runs = (*(before.runs if before else ()), (data.name, one))
            made[key] = FollowedQuestion(strip, one, runs)
    return [one for one in made.values() if any(found.answers for _, found in one.runs)]


def graders(page: Page) -> str:
    """Who says which of the followed answers are correct."""
    found = [data.trajectories.grader for data in page.runs if data.trajectories and data.trajectories.grader]
    return graded_by(*dict.fromkeys(found)) if found else ""


def claims(page: Page) -> list[ClaimsExample]:
    """A few questions of every claims analysis: those whose last answer claims most without support."""
    return [example for data in page.runs for found in data.costly.claims for example in _examples(found)]


def _examples(found: Claims) -> list[ClaimsExample]:
    policies = list(dict.fromkeys(row.policy for row in found.rows if row.claims is not None))
    if not policies:
        return []
    by_id: dict[str, dict[int, Examined]] = {}
    for row in found.rows:
        if row.claims is not None:
            by_id.setdefault(row.id, {})[row.policy] = row
    whole = [rows for rows in by_id.values() if policies[-1] in rows]
    worst = sorted(whole, key=lambda rows: (-rows[policies[-1]].unsupported, rows[policies[-1]].id))[:EXAMPLES]
    where = f"{found.run}, {found.set}; {graded_by(found.grader.label)}"
    shown = dict.fromkeys((policies[0], policies[-1]))
    return [
        ClaimsExample(where, rows[policies[-1]], _answers([rows[policy] for policy in shown if policy in rows]))
        for rows in worst
    ]


def _answers(rows: Sequence[Examined]) -> tuple[ExaminedAnswer, ...]:
    return tuple(
        ExaminedAnswer(layout.policy_name(row.policy), pieces(row.answer, row.claims or ()), row.unsupported)
        for row in rows
    )
