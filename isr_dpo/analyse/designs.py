"""Context designs side by side, from runs that differ in `retrospect.context` (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.runs import Graded, Run
from isr_dpo.errors import DataError
from isr_dpo.evaluate.comparison import Comparison, compare

BASELINE = "none"
"""Self-rewarding: the judge sees no description."""


@dataclass(frozen=True)
class DesignSet:
    """A design's figures on one evaluation set. Accuracy is a share."""

    set: str
    protocol: str
    grader: str
    accuracy: Estimate | None
    """None where nothing is scored."""
    score: Estimate | None
    unscored: int
    rows: int
    accuracy_gain: Estimate | None = None
    """Over the baseline, on the questions that both have scored; None where they cannot be compared."""
    score_gain: Estimate | None = None


@dataclass(frozen=True)
class Design:
    run: str
    context: str
    policy: int
    baseline: str | None
    """The run that the gains are over: of design `none`, of the same seed where there is one."""
    sets: tuple[DesignSet, ...]
    """Those graded, by name."""


@dataclass(frozen=True)
class Designs:
    policy: int
    designs: tuple[Design, ...]
    """In the order of the runs."""
    notes: tuple[str, ...]
    """Why something cannot be compared."""


def designs(runs: Sequence[Run], *, policy: int | None = None) -> Designs:
    """The designs of `runs` at `policy`; None: the latest policy that is graded in all of them, else the last of all.

    Figures of different graders are shown and never subtracted; nor are those of different questions.

    Raises:
        CorruptOutput: a file differs from its manifest.
    """
    index = _latest(runs) if policy is None else policy
    graded = {run.name: _graded(run, index) for run in runs}
    notes: list[str] = []
    made = []
    for run in runs:
        baseline = _baseline(run, runs)
        sets = tuple(
            _set(run, name, of_run, baseline, graded[baseline.name].get(name) if baseline else None, notes)
            for name, of_run in graded[run.name].items()
        )
        if not sets:
            notes.append(f"{run.name}: policy {index} is not graded on any set")
        made.append(Design(run.name, run.recipe.retrospect.context, index, baseline.name if baseline else None, sets))
    if all(run.recipe.retrospect.context != BASELINE for run in runs):
        notes.append(f"no run has context {BASELINE!r} (self-rewarding), so there are no gains")
    return Designs(index, tuple(made), tuple(dict.fromkeys(notes)))


def _latest(runs: Sequence[Run]) -> int:
    shared = set.intersection(*({p for p in run.policies if _graded(run, p)} for run in runs))
    return max(shared, default=max(run.policies[-1] for run in runs))


def _graded(run: Run, policy: int) -> dict[str, Graded]:
    found = {name: run.graded(policy, name) for name in sorted(run.recipe.data.sets)}
    return {name: graded for name, graded in found.items() if graded is not None}


def _baseline(run: Run, runs: Sequence[Run]) -> Run | None:
    if run.recipe.retrospect.context == BASELINE:
        return None
    found = [other for other in runs if other.recipe.retrospect.context == BASELINE]
    return next((other for other in found if other.recipe.seed == run.recipe.seed), found[0] if found else None)


def _set(
    run: Run, name: str, graded: Graded, baseline: Run | None, of_baseline: Graded | None, notes: list[str]
) -> DesignSet:
    gain = None
    if baseline is not None and of_baseline is not None:
        why = _incomparable(run, graded, baseline, of_baseline, name)
        gain = None if why else _gain(graded, of_baseline)
        notes += [why] if why else []
    return DesignSet(
        set=name,
        protocol=graded.grader.protocol,
        grader=graded.grader.label,
        accuracy=graded.accuracy,
        score=graded.score,
        unscored=graded.unscored,
        rows=len(graded.grades),
        accuracy_gain=None if gain is None else Estimate.of(gain.accuracy),
        score_gain=None if gain is None else Estimate.of(gain.score),
    )


def _incomparable(run: Run, graded: Graded, baseline: Run, of_baseline: Graded, name: str) -> str | None:
    if graded.grader != of_baseline.grader:
        who = f"{run.name} is graded by {graded.grader.words}, {baseline.name} by {of_baseline.grader.words}"
        return f"{name}: {who}: not compared"
    if run.set_digest(name) != baseline.set_digest(name):
        return f"{name}: {run.name} and {baseline.name} were asked different questions: not compared"
    return None


def _gain(graded: Graded, baseline: Graded) -> Comparison | None:
    try:
        return compare(baseline.grades, graded.grades)
    except DataError:  # no question is scored in both
        return None
