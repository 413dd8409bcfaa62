"""Two systems compared on a set, where their figures can be compared at all."""

from __future__ import annotations

from dataclasses import dataclass

from isr_dpo.analyse.runs import Graded, GraderInfo, Run
from isr_dpo.errors import DataError
from isr_dpo.evaluate.comparison import Comparison, compare


@dataclass(frozen=True)
class System:
    """A policy of a run."""

    run: Run
    policy: int

    @property
    def label(self) -> str:
        return self.run.system(self.policy)


@dataclass(frozen=True)
class Compared:
    """`comparison` is the second system against the first, on the questions of one set."""

    set: str
    systems: tuple[str, str]
    grader: GraderInfo
    comparison: Comparison


def compared(first: System, second: System, name: str) -> Compared:
    """Compares two systems on the set `name`.

    Raises:
        DataError: one of them is not graded on it; another grader, protocol, prompt or reading; or other questions.
    """
    a, b = _graded(first, name), _graded(second, name)
    if a.grader != b.grader:
        raise DataError(
            f"{name}: not comparable: {first.label} was graded by {a.grader.words}, {second.label} by "
            f"{b.grader.words}. Evaluate both by one grader, protocol, prompt and reading"
        )
    _check_questions(first, second, name)
    return Compared(name, (first.label, second.label), a.grader, compare(a.grades, b.grades))


def graded_sets(first: System, second: System) -> list[str]:
    """The sets that both are graded on, sorted."""
    shared = first.run.recipe.data.sets.keys() & second.run.recipe.data.sets.keys()
    return [name for name in sorted(shared) if all(s.run.graded(s.policy, name) for s in (first, second))]


def _graded(system: System, name: str) -> Graded:
    if name not in system.run.recipe.data.sets:
        sets = ", ".join(sorted(system.run.recipe.data.sets))
        raise DataError(f"{system.run.uri}: no evaluation set {name!r}; its sets: {sets}")
    graded = system.run.graded(system.policy, name)
    if graded is None:
        raise DataError(
            f"{name}: {system.label} is not graded; `isr-dpo evaluate RECIPE --run-uri {system.run.uri} --index "
            f"{system.policy}` grades answers that stand"
        )
    return graded


def _check_questions(first: System, second: System, name: str) -> None:
    """A set of one name may be another file in another run. Rows that only one run has are left out of a comparison,
    rows of one id with other content are refused."""
    if first.run.set_digest(name) == second.run.set_digest(name):
        return
    asked = {row.id: row for row in first.run.test_rows(name)}
    for row in second.run.test_rows(name):
        if row.id in asked and asked[row.id] != row:
            raise DataError(
                f"{name}: not comparable: question {row.id!r} of {second.run.uri} is another one than in "
                f"{first.run.uri}; their sets come from different files"
            )
