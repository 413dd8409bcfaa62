"""Tables 1, 2, 3 and 5: the paper's reported values, and ours beside them.

The reported ones were made by graders that are no longer served, and the version of the grader moves accuracy by 8 to
15 points on the same answers [C]: they are for orientation, no difference to ours means anything. They stand in
reported.yaml.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

from isr_dpo import layout
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.runs import Graded, Run

DESIGNS = 5
"""The table of context designs, in which a benchmark has no place."""
NUMBERS = (1, 2, 3, DESIGNS)
REPORTED = "reported, retired grader"
"""Stands where our figures have the grader's name."""
REPRODUCED = "†"
DESIGN_NAMES = {"none": "N/A", "fixed": "Fixed", "renew": "Renew", "retrospective": "Retrospective"}
"""Table 5's rows by `retrospect.context`."""


@dataclass(frozen=True)
class Cell:
    """A system on a set."""

    accuracy_percent: Estimate
    score: Estimate
    unscored: int | None = None
    """Of `rows` answers; None: not reported."""
    rows: int | None = None


@dataclass(frozen=True)
class TableRow:
    system: str
    """As the paper has it; ours: run and policy."""
    origin: Literal["reported", "ours"]
    grader: str
    cells: Mapping[str, Cell]
    """By set; one that is not reported, or not graded, is absent."""
    source: str = ""
    """Of the system."""
    mark: str = ""
    """`†`: reproduced by the paper's authors, not taken from another paper."""


@dataclass(frozen=True)
class Table:
    number: int
    """In the paper."""
    title: str
    protocol: str
    sets: Mapping[str, str]
    """The paper's name by set, in its order."""
    digits: int
    """Decimals of the reported figures."""
    rows: tuple[TableRow, ...]
    """The reported ones, then ours."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReportedAgreement:
    """Table 4, in percent of the human's choices."""

    self_rewarding: float
    isr_dpo: float


def table(number: int, runs: Sequence[Run] = ()) -> Table:
    """Table `number` of the paper with a row for every policy of `runs` that is graded on any of its sets.

    Raises:
        ValueError: no such table here.
        CorruptOutput: a file of a run differs from its manifest.
    """
    if number not in NUMBERS:
        raise ValueError(f"table {number}: accepted: {', '.join(map(str, NUMBERS))}")
    tree = _reported()
    found = tree["tables"][number]
    shown = [run for run in runs if run.context or number != DESIGNS]
    ours = [row for run in shown for row in _ours(run, found, designs=number == DESIGNS)]
    notes = [tree["note"], *found.get("notes", ())]
    if runs and not ours:
        notes.append(f"None of the runs is graded on a set of this table ({', '.join(found['sets'])}).")
    return Table(
        number=number,
        title=found["title"],
        protocol=found["protocol"],
        sets=found["sets"],
        digits=found["digits"],
        rows=(*(_row(row) for row in found["rows"]), *ours),
        notes=tuple(notes),
    )


def agreement() -> ReportedAgreement:
    """Table 4's two values."""
    return ReportedAgreement(**_reported()["agreement"])


@functools.cache
def _reported() -> Any:
    return yaml.safe_load((resources.files(__package__) / "reported.yaml").read_text(encoding="utf-8"))


def _row(row: Mapping[str, Any]) -> TableRow:
    policy = f", {layout.policy_name(row['policy'])}" if "policy" in row else ""
    cells = {name: Cell(Estimate(accuracy), Estimate(score)) for name, (accuracy, score) in row["figures"].items()}
    mark = REPRODUCED if row.get("reproduced") else ""
    return TableRow(row["system"] + policy, "reported", REPORTED, cells, row.get("source", ""), mark)


def _ours(run: Run, found: Mapping[str, Any], *, designs: bool) -> list[TableRow]:
    """A row for every policy that is graded on a set of the table; for every grader, where several graded it."""
    rows = []
    for policy in run.policies:
        graded = {name: run.graded(policy, name) for name in found["sets"] if name in run.recipe.data.sets}
        by_grader: dict[str, dict[str, Cell]] = {}
        for name, made in graded.items():
            cell = _cell(made) if made is not None and made.grader.protocol == found["protocol"] else None
            if made is not None and cell is not None:
                by_grader.setdefault(made.grader.label, {})[name] = cell
        system = run.system(policy) + (f", {DESIGN_NAMES.get(run.context, run.context)}" if designs else "")
        rows += [TableRow(system, "ours", grader, cells) for grader, cells in by_grader.items()]
    return rows


def _cell(graded: Graded) -> Cell | None:
    if graded.accuracy is None or graded.score is None:
        return None
    return Cell(graded.accuracy.scaled(100), graded.score, graded.unscored, len(graded.grades))
