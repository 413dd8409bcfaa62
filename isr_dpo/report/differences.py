"""Paired differences: policies of a run, and runs, on the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from isr_dpo import layout
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.errors import DataError
from isr_dpo.evaluate.comparison import Comparison, compare
from isr_dpo.report.reading import KeptRun
from isr_dpo.report.tables import EMPTY, NONE, Cell, Row, Table, difference


@dataclass(frozen=True)
class Place:
    """A policy's answers to a set."""

    run: KeptRun
    policy: int
    set: str


@dataclass(frozen=True)
class Paired:
    """`second` against `first`. `comparison` is None where they cannot be compared, and `why` says so."""

    first: Place
    second: Place
    comparison: Comparison | None
    why: str = ""


def paired(first: Place, second: Place) -> Paired | None:
    """Compares the grades of two places; None where one is not graded."""
    a, b = (place.run.graded(place.policy, place.set) for place in (first, second))
    if a is None or b is None:
        return None
    if a.grader != b.grader:
        return Paired(first, second, None, f"graded differently: {a.grader.words}, {b.grader.words}")
    if first.run.set_digest(first.set) != second.run.set_digest(second.set):
        return Paired(first, second, None, "asked different questions")
    try:
        return Paired(first, second, compare(a.grades, b.grades))
    except DataError as error:
        return Paired(first, second, None, str(error))


def within(run: KeptRun) -> Table | None:
    """Every policy against the first and against the one before, by set; None with fewer than two graded."""
    rows: list[Row] = []
    names = sorted(run.recipe.data.sets, key=lambda name: (name != run.recipe.leading_set, name))
    for name in names:
        places = [Place(run, index, name) for index in run.policies if run.graded(index, name) is not None]
        for number, (before, place) in enumerate(pairwise(places)):
            from_first, from_before = paired(places[0], place), paired(before, place)
            assert from_first is not None
            assert from_before is not None
            last = EMPTY if number == 0 else _accuracy(from_before)
            head = Cell(layout.policy_name(place.policy), f"before: {layout.policy_name(before.policy)}")
            group = f"on {name}, since {layout.policy_name(places[0].policy)}" if number == 0 else ""
            rows.append(Row(head, (*_cells(from_first), last), group=group))
    if not rows:
        return None
    columns = ("Policy", "Accuracy", "Score", "Wrong → right", "Right → wrong", "Accuracy since\nthe one before")
    return Table(f"within-{run.folder}", f"Differences between policies of {run.name}", columns, tuple(rows), _NOTE)


def between(runs: Sequence[KeptRun]) -> Table | None:
    """Every run against the first, by set, at the latest policy that both have graded, else each at its latest."""
    rows: list[Row] = []
    first = runs[0]
    for other in runs[1:]:
        begun = False
        for name in sorted(first.recipe.data.sets.keys() & other.recipe.data.sets.keys()):
            places = _places(first, other, name)
            found = paired(*places) if places else None
            if found is None:
                continue
            policies = " against ".join(layout.policy_name(place.policy) for place in (found.second, found.first))
            group = "" if begun else f"{other.name} against {first.name}"
            rows.append(Row(Cell(name, policies), _cells(found), group=group))
            begun = True
    if not rows:
        return None
    columns = ("Set", "Accuracy", "Score", "Wrong → right", "Right → wrong")
    return Table("between-runs", "Differences between runs", columns, tuple(rows), _NOTE)


_NOTE = (
    "Percentage points of accuracy and points of score, on the questions that both have scored, with 95 % intervals by "
    "a bootstrap over videos; coloured where the interval leaves zero out."
)


def _places(first: KeptRun, other: KeptRun, name: str) -> tuple[Place, Place] | None:
    a, b = ([i for i in run.policies if run.graded(i, name) is not None] for run in (first, other))
    if not a or not b:
        return None
    both = max(set(a) & set(b), default=None)
    return Place(first, a[-1] if both is None else both, name), Place(other, b[-1] if both is None else both, name)


def _accuracy(found: Paired) -> Cell:
    made = found.comparison
    return (
        Cell(NONE, found.why, "quiet") if made is None else difference(Estimate.of(made.accuracy), digits=1, scale=100)
    )


def _cells(found: Paired) -> tuple[Cell, ...]:
    made = found.comparison
    if made is None:
        return Cell("not compared", found.why, "quiet"), EMPTY, EMPTY, EMPTY
    right, wrong = len(made.flips.to_right), len(made.flips.to_wrong)
    return (
        _accuracy(found),
        difference(Estimate.of(made.score), digits=2),
        Cell(f"{right}", f"of {made.rows}"),
        Cell(f"{wrong}", f"of {made.rows}"),
    )
