"""What candidate and champion answered to the candidate's dev questions, graded by one grader in one way, from the
files of their runs; or what has to be evaluated first."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, zip_longest

from isr_dpo.analyse.runs import RULES, Graded, GraderInfo, Run, open_run
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError, RecipeError
from isr_dpo.evaluate import open_protocol
from isr_dpo.evaluate.comparison import Comparison, compare
from isr_dpo.manifest import find
from isr_dpo.records import Grade, TestRow
from isr_dpo.registry import submissions
from isr_dpo.registry.submissions import Submission
from isr_dpo.registry.versions import Version


@dataclass(frozen=True)
class Place:
    """Where a policy's answers to a set lie."""

    run: Run
    policy: int
    set: str

    @functools.cached_property
    def graded(self) -> Graded | None:
        return self.run.graded(self.policy, self.set)

    @functools.cached_property
    def rows(self) -> Mapping[str, TestRow]:
        """Questions by id; none where the run did not read the set."""
        if self.run.set_digest(self.set) is None:
            return {}
        return {row.id: row for row in self.run.test_rows(self.set)}

    @property
    def answers_uri(self) -> str:
        return self.run.answers_uri(self.policy, self.set)

    def covers(self, asked: Mapping[str, TestRow]) -> bool:
        """Whether all these questions are put here, in the same words, about the same videos."""
        return asked.items() <= self.rows.items()


@dataclass(frozen=True)
class Side:
    """A version's answers to the candidate's dev questions, graded."""

    version: Version
    place: Place
    grades: tuple[Grade, ...]

    @property
    def unscored(self) -> int:
        return sum(grade.status != "scored" for grade in self.grades)

    @property
    def words(self) -> float:
        """Mean, of answers that are not empty."""
        words = [grade.words for grade in self.grades if grade.words]
        return sum(words) / len(words) if words else 0.0

    @property
    def accuracy(self) -> float | None:
        right = [float(bool(grade.correct)) for grade in self.grades if grade.status == "scored"]
        return sum(right) / len(right) if right else None

    @property
    def score(self) -> float | None:
        points = [grade.score for grade in self.grades if grade.status == "scored" and grade.score is not None]
        return sum(points) / len(points) if points else None


@dataclass(frozen=True)
class Match:
    """`comparison` is the candidate against the champion; both are None where there is no champion yet, and the
    comparison alone where no question is scored in both."""

    set: str
    grader: GraderInfo
    candidate: Side
    champion: Side | None
    comparison: Comparison | None


@dataclass(frozen=True)
class Flip:
    """A question whose answer changed sides; `gained`: wrong in the champion, right in the candidate."""

    id: str
    video: str
    question: str
    truth: str
    champion: str
    candidate: str
    gained: bool


@dataclass(frozen=True)
class Evidence:
    """A match, or why there is none and what makes one."""

    match: Match | None
    reason: str = ""
    missing: tuple[Submission, ...] = ()


@dataclass(frozen=True)
class _Contender:
    """`standing`: its own run's answers to the same questions. `again` and `anew` grade them again as the candidate's
    recipe says, `anew` without taking a grade that was bought before."""

    version: Version
    standing: Sequence[Place]
    again: Submission
    anew: Submission

    def graded(self, asked: Mapping[str, TestRow]) -> list[Place]:
        """Places of comparable questions that are graded, its own first. Raises DataError: the dev set's file is
        another one now."""
        found = [place for place in self.standing if place.graded is not None]
        for made in (self.again, self.anew):
            run = made.run()
            place = None if run is None else Place(run, 0, made.set)
            if place is None or place.graded is None:
                continue
            if not place.covers(asked):
                file = made.recipe.data.sets[made.set]
                raise DataError(
                    f"{made.run_uri} asks other questions than the candidate was asked: {file} has changed since, or "
                    "other videos are unreadable. Mend that, delete the run, submit it again"
                )
            found.append(place)
        return found


def gather(candidate: Version, champion: Version | None) -> Evidence:
    """Both versions' grades, by the first grader that has graded both.

    Raises:
        DataError: the candidate's run is gone, or not prepared.
        CorruptOutput: a file differs from its manifest.
    """
    run = open_run(candidate.run_uri)
    own = Place(run, candidate.policy, run.recipe.evaluate.dev)
    if not own.rows:
        raise DataError(f"{run.uri}: its dataset is not complete, so nobody knows what {own.set} asks")
    contenders = [_contender(candidate, run, own, run)]
    if champion is not None:
        contenders.append(_contender(champion, _opened(champion), own, run))
    places = [each.graded(own.rows) for each in contenders]
    for found in product(*places):
        if len({_grader(place) for place in found}) == 1:
            return Evidence(_match(own, [each.version for each in contenders], found))
    return _lacking(contenders, places, asked_by(run.recipe))


def asked_by(recipe: Recipe) -> GraderInfo:
    """The grader that a recipe asks for its dev set, whatever is served under that name."""
    protocol = recipe.protocol(recipe.evaluate.dev)
    reading = recipe.evaluate.reading
    if recipe.evaluate.grader == "rules":
        return GraderInfo(RULES, None, protocol, reading=reading)
    model = recipe.evaluate.model
    return GraderInfo(model, model, protocol, open_protocol(protocol).prompt_digest, reading=reading)


def flips(match: Match) -> list[Flip]:
    """All answers that changed sides, losses and gains in turn as long as there are both, otherwise in an order that
    says nothing."""
    if match.champion is None or match.comparison is None:
        return []
    texts = []
    for side in (match.candidate, match.champion):
        rows = side.place.run.predictions(side.place.policy, side.place.set) or []
        texts.append({row.id: row.model_prediction.message for row in rows})
    asked = match.candidate.place.rows

    def made(question: str, gained: bool) -> Flip:
        row, (mine, its) = asked[question], (found.get(question, "") for found in texts)
        return Flip(question, row.video, row.question, row.answer, champion=its, candidate=mine, gained=gained)

    lost, won = (
        [made(question, gained) for question in sorted(ids, key=_shuffled)]
        for ids, gained in ((match.comparison.flips.to_wrong, False), (match.comparison.flips.to_right, True))
    )
    return [flip for pair in zip_longest(lost, won) for flip in pair if flip is not None]


def _contender(version: Version, run: Run | None, own: Place, asked: Run) -> _Contender:
    """`run` is the version's own, None where it is gone; `asked` the candidate's, whose dev questions are at `own`."""
    what = f"version {version.number}"
    places = [] if run is None else [Place(run, version.policy, name) for name in sorted(run.recipe.data.sets)]
    answers = next((place.answers_uri for place in places if _regradable(place, own)), None)
    again, anew = (
        submissions.answered(what, asked, version.source, own=run, fresh=fresh)
        if answers is None
        else submissions.regraded(what, asked, answers, fresh=fresh)
        for fresh in (False, True)
    )
    return _Contender(version, [place for place in places if place.covers(own.rows)], again, anew)


def _opened(version: Version) -> Run | None:
    """None: the run is cleared away, its recipe is of another time, or nobody knows it. The model may be there."""
    try:
        return open_run(version.run_uri)
    except (DataError, RecipeError):
        return None


def _regradable(place: Place, own: Place) -> bool:
    """Answers fit the candidate's dev set where they answer nothing else, and nearly all of it: what is missing counts
    as unscored."""
    if not place.rows or not place.rows.items() <= own.rows.items() or find(place.answers_uri) is None:
        return False
    return 1 - len(place.rows) / len(own.rows) <= own.run.recipe.promote.max_unscored_fraction


def _match(own: Place, versions: Sequence[Version], found: Sequence[Place]) -> Match:
    sides = []
    for version, place in zip(versions, found, strict=True):
        assert place.graded is not None
        sides.append(Side(version, place, tuple(g for g in place.graded.grades if g.id in own.rows)))
    mine = sides[0]
    if len(sides) == 1:
        return Match(own.set, _grader(mine.place), mine, None, None)
    scored = [{g.id for g in side.grades if g.status == "scored"} for side in sides]
    comparison = compare(sides[1].grades, mine.grades) if scored[0] & scored[1] else None
    return Match(own.set, _grader(mine.place), mine, sides[1], comparison)


def _lacking(contenders: Sequence[_Contender], places: Sequence[Sequence[Place]], asked: GraderInfo) -> Evidence:
    """What is to be evaluated. A side that the candidate's grader has graded is left as it is, unless what was served
    under the grader's name has changed in between: then both are graded anew."""
    whole = zip(contenders, places, strict=True)
    lacking = [each.again for each, found in whole if asked not in [_unserved(_grader(place)) for place in found]]
    said = "; ".join(
        f"version {each.version.number}: {' and '.join(sorted({_grader(p).words for p in found})) or 'not graded'}"
        for each, found in zip(contenders, places, strict=True)
    )
    if lacking:
        return Evidence(None, f"there is no grade of one grader on the same dev questions ({said})", tuple(lacking))
    anew = tuple(each.anew for each in contenders)
    standing = {place.run.uri for found in places for place in found}
    pending = tuple(made for made in anew if made.run_uri not in standing)
    if pending:
        return Evidence(None, f"another model answers to the grader's name by now ({said})", pending)
    gone = " and ".join(made.run_uri for made in anew)
    return Evidence(None, f"the grader's name stood for several models again ({said}): delete {gone} and repeat", anew)


def _grader(place: Place) -> GraderInfo:
    assert place.graded is not None
    return place.graded.grader


def _unserved(grader: GraderInfo) -> GraderInfo:
    return replace(grader, served_models=())


def _shuffled(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()
