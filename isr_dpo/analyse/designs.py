"""Context designs side by side, from runs that differ in `retrospect.context` (Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isr_dpo.analyse.compared import System, compared
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.runs import Graded, Run
from isr_dpo.errors import DataError

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

    Figures of different graders are shown and never subtracted; nor are those of different questions. A benchmark has
    no design.

    Raises:
        DataError: none of the runs has a design.
        CorruptOutput: a file differs from its manifest.
    """
    benchmarks = [run.name for run in runs if not run.context]
    runs = [run for run in runs if run.context]
    if not runs:
        raise DataError("context designs: no run that trains, so none with a design")
    index = _latest(runs) if policy is None else policy
    notes = [f"{name}: a benchmark has no context design" for name in benchmarks]
    made = []
    for run in runs:
        baseline = _baseline(run, runs)
        graded = _graded(run, index)
        sets = tuple(_set(run, index, name, of_run, baseline, notes) for name, of_run in graded.items())
        if not sets:
            notes.append(f"{run.name}: policy {index} is not graded on any set")
        made.append(Design(run.name, run.context, index, baseline.name if baseline else None, sets))
    if all(run.context != BASELINE for run in runs):
        notes.append(f"no run has context {BASELINE!r} (self-rewarding), so there are no gains")
    return Designs(index, tuple(made), tuple(dict.fromkeys(notes)))


def _latest(runs: Sequence[Run]) -> int:
    last = max(run.policies[-1] for run in runs)
    shared = (policy for policy in range(last, 0, -1) if all(_is_graded(run, policy) for run in runs))
    return next(shared, last)


def _is_graded(run: Run, policy: int) -> bool:
    return policy in run.policies and any(run.graded(policy, name) for name in run.recipe.sets_at(policy))


def _graded(run: Run, policy: int) -> dict[str, Graded]:
    found = {name: run.graded(policy, name) for name in sorted(run.recipe.data.sets)}
    return {name: graded for name, graded in found.items() if graded is not None}


def _baseline(run: Run, runs: Sequence[Run]) -> Run | None:
    if run.context == BASELINE:
        return None
    found = [other for other in runs if other.context == BASELINE]
    return next((other for other in found if other.recipe.seed == run.recipe.seed), found[0] if found else None)


def _set(run: Run, policy: int, name: str, graded: Graded, baseline: Run | None, notes: list[str]) -> DesignSet:
    gain = None
    if baseline is not None and baseline.graded(policy, name) is not None:
        try:
            gain = compared(System(baseline, policy), System(run, policy), name).comparison
        except DataError as error:
            notes.append(str(error))
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
