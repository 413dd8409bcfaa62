"""Questions whose answers changed sides from one policy to another, of one run or of several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from isr_dpo import layout
from isr_dpo.analyse.runs import Graded
from isr_dpo.records import Prediction
from isr_dpo.report.reading import KeptRun

COUNT = 150
TEXT_CHARACTERS = 1_200_000
"""Of all answers and replies shown."""
_REPLY_CHARACTERS, _ANSWER_CHARACTERS = 600, 2_000


@dataclass(frozen=True)
class System:
    """A policy of a run, as one of those to compare."""

    run: KeptRun
    policy: int
    label: str


@dataclass(frozen=True)
class Answered:
    """A system's answer and what the grader made of it; `correct` None: unscored."""

    correct: bool | None
    score: float | None
    text: str
    reply: str


@dataclass(frozen=True)
class Question:
    """A question that at least two systems differ on. `answers` follow the systems; None: not asked or not graded."""

    set: str
    id: str
    video: str
    run: KeptRun
    """One that has its frames."""
    text: str
    truth: str
    answers: tuple[Answered | None, ...]

    def moves(self, first: int, second: int) -> str:
        """`right`, `wrong` (where it went from the first system to the second), or empty."""
        a, b = self.answers[first], self.answers[second]
        if a is None or b is None or a.correct is None or b.correct is None or a.correct == b.correct:
            return ""
        return "right" if b.correct else "wrong"


@dataclass(frozen=True)
class Count:
    """Between two systems on one set: questions scored in both, and those that changed sides."""

    set: str
    first: int
    second: int
    rows: int
    to_right: int
    to_wrong: int


@dataclass(frozen=True)
class Flips:
    """`counts` are of all questions, `questions` a bounded choice among the `changed`."""

    systems: tuple[System, ...]
    counts: tuple[Count, ...]
    questions: tuple[Question, ...]
    changed: int


@dataclass(frozen=True)
class _Asked:
    """The same questions, put to several systems; `name` is the set's."""

    name: str
    grades: Mapping[int, Graded]
    """By the system's place."""

    def correct(self) -> dict[int, dict[str, bool]]:
        return {i: {g.id: bool(g.correct) for g in made.scored} for i, made in self.grades.items()}


def gather(runs: Sequence[KeptRun]) -> Flips:
    """The flips between all policies of `runs`; runs that were asked different questions are not set against each
    other. The same runs give the same choice."""
    several = len(runs) > 1
    systems = tuple(
        System(run, index, f"{run.name} · {layout.policy_name(index)}" if several else layout.policy_name(index))
        for run in runs
        for index in run.policies
    )
    groups = _asked(systems)
    counts: list[Count] = []
    changed: list[tuple[int, str]] = []
    for number, asked in enumerate(groups):
        correct = asked.correct()
        counts += [_count(asked.name, a, b, correct) for a, b in combinations(sorted(correct), 2)]
        sides: dict[str, set[bool]] = {}
        for marks in correct.values():
            for question, mark in marks.items():
                sides.setdefault(question, set()).add(mark)
        changed += [(number, question) for question, seen in sides.items() if len(seen) > 1]
    changed.sort(key=lambda one: hashlib.sha256(f"{groups[one[0]].name}\0{one[1]}".encode()).digest())
    return Flips(systems, tuple(counts), _questions(systems, groups, changed[:COUNT]), len(changed))


def _asked(systems: Sequence[System]) -> list[_Asked]:
    """Graded sets, those of different questions apart; one that a single system answered shows no flips."""
    groups: dict[tuple[str, str | None, str], dict[int, Graded]] = {}
    for place, system in enumerate(systems):
        for name in sorted(system.run.recipe.data.sets):
            made = system.run.graded(system.policy, name)
            if made is not None:
                key = (name, system.run.set_digest(name), made.grader.protocol)
                groups.setdefault(key, {})[place] = made
    return [_Asked(name, made) for (name, _, _), made in groups.items() if len(made) > 1]


def _count(name: str, first: int, second: int, correct: Mapping[int, Mapping[str, bool]]) -> Count:
    a, b = correct[first], correct[second]
    both = a.keys() & b.keys()
    to_right = sum(b[i] and not a[i] for i in both)
    to_wrong = sum(a[i] and not b[i] for i in both)
    return Count(name, first, second, len(both), to_right, to_wrong)


def _questions(
    systems: Sequence[System], groups: Sequence[_Asked], changed: Sequence[tuple[int, str]]
) -> tuple[Question, ...]:
    """As many of `changed`, each a group's number and a question's id, as there is room for."""
    by_group: dict[int, set[str]] = {}
    for number, question in changed:
        by_group.setdefault(number, set()).add(question)
    told = {number: _told(systems, groups[number], wanted) for number, wanted in by_group.items()}
    shown: list[Question] = []
    room = TEXT_CHARACTERS
    for number, question in changed:
        found = told[number].get(question)
        if found is None:
            continue
        answers = tuple(found.answers.get(place) for place in range(len(systems)))
        room -= sum(len(a.text) + len(a.reply) for a in answers if a is not None)
        if room < 0:
            break
        row = found.row
        name, run = groups[number].name, systems[min(found.answers)].run
        shown.append(Question(name, question, row.modal_path, run, row.query, row.answer, answers))
    return tuple(shown)


@dataclass(frozen=True)
class _Told:
    row: Prediction
    """Any of them: question and truth are the same."""
    answers: dict[int, Answered]


def _told(systems: Sequence[System], asked: _Asked, wanted: set[str]) -> dict[str, _Told]:
    """What the systems answered to the questions of these ids."""
    told: dict[str, _Told] = {}
    for place, made in asked.grades.items():
        grades = {grade.id: grade for grade in made.grades if grade.id in wanted}
        for row in systems[place].run.predictions(systems[place].policy, asked.name) or []:
            if row.id in grades:
                grade, text = grades[row.id], row.model_prediction.message[:_ANSWER_CHARACTERS]
                correct = grade.correct if grade.status == "scored" else None
                answer = Answered(correct, grade.score, text, grade.reply[:_REPLY_CHARACTERS])
                told.setdefault(row.id, _Told(row, {})).answers[place] = answer
    return told
