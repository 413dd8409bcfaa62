"""The paper's tables with our figures beside the reported ones, and context designs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isr_dpo import layout
from isr_dpo.analyse import tables as reported
from isr_dpo.analyse.designs import Design, Designs, DesignSet
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.report.tables import EMPTY, Cell, Row, Table, difference


@dataclass(frozen=True)
class PaperTable:
    """`ours`: whether any of our figures stands in it."""

    number: int
    title: str
    table: Table
    ours: bool


def table(found: reported.Table) -> PaperTable:
    """A table of the paper, drawn as all of ours are."""
    ours = any(row.origin == "ours" for row in found.rows)
    rows = [_row(found, row, number) for number, row in enumerate(found.rows)]
    columns = ("System", "Grader", *(f"{name}\naccuracy; score" for name in found.sets.values()))
    title = f"Table {found.number}: {found.title}"
    made = Table(f"paper-{found.number}", title, columns, tuple(rows), " ".join(found.notes))
    return PaperTable(found.number, title, made, ours)


def _row(found: reported.Table, row: reported.TableRow, number: int) -> Row:
    first = number == 0 or found.rows[number - 1].origin != row.origin
    group = ("Reported in the paper" if row.origin == "reported" else "Ours") if first else ""
    cells = [_cell(row.cells.get(name), row.origin, found.digits) for name in found.sets]
    tone = "quiet" if row.origin == "reported" else ""
    head = Cell(f"{row.system}{' ' + row.mark if row.mark else ''}", row.source)
    return Row(head, (Cell(row.grader, tone=tone), *cells), group=group, best=row.origin == "ours")


def _cell(cell: reported.Cell | None, origin: str, digits: int) -> Cell:
    if cell is None:
        return EMPTY
    places = digits if origin == "reported" else 1
    text = f"{cell.accuracy_percent.value:.{places}f}; {cell.score.value:.{2 if places > 1 else 1}f}"
    if origin == "reported":
        return Cell(text)
    text = f"{cell.accuracy_percent.value:.1f}; {cell.score.value:.2f}"
    return Cell(text, f"{_bounds(cell.accuracy_percent)}; {cell.unscored} of {cell.rows} unscored")


def _bounds(value: Estimate) -> str:
    return "" if value.low is None or value.high is None else f"{value.low:.1f}–{value.high:.1f}"


def designs(found: Designs, judges: Mapping[str, str]) -> Table | None:
    """Context designs side by side: figures, and gains over self-rewarding (Table 5, ours). None where nothing is
    graded. `judges` says by run who judged."""
    names = sorted({one.set for design in found.designs for one in design.sets})
    rows = [_design(design, names, judges.get(design.run, "")) for design in found.designs if design.sets]
    if not rows:
        return None
    columns = ("Run", "Grader", *(column for name in names for column in (f"{name}\naccuracy", f"{name}\nover none")))
    note = (
        f"At {layout.policy_name(found.policy)}. Over none: percentage points above the run without descriptions "
        "(self-rewarding), paired on the same questions, with 95 % intervals. " + ". ".join(found.notes)
    )
    return Table("designs", "Context designs side by side", columns, tuple(rows), note.strip())


def _design(design: Design, names: Sequence[str], judge: str) -> Row:
    by_set = {one.set: one for one in design.sets}
    cells = [cell for name in names for cell in _design_cells(by_set.get(name))]
    control = f", judge: {judge}" if judge not in ("", "self") else ""
    graders = Cell(" and ".join(dict.fromkeys(one.grader for one in design.sets)))
    return Row(Cell(design.run, f"context: {design.context or 'none, a benchmark'}{control}"), (graders, *cells))


def _design_cells(one: DesignSet | None) -> tuple[Cell, Cell]:
    if one is None or one.accuracy is None:
        return EMPTY, EMPTY
    accuracy = one.accuracy.scaled(100)
    sub = f"{_bounds(accuracy)}; {one.unscored} of {one.rows} unscored"
    return Cell(f"{accuracy.value:.1f} %", sub), difference(one.accuracy_gain, digits=1, scale=100)
