"""Table 4: how often the judge chooses as people do, or an oracle, beside the reported values."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.analyse.agreement import Agreement, SamePairs
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.tables import ReportedAgreement
from isr_dpo.analyse.verdicts import Alignment
from isr_dpo.report.tables import EMPTY, Cell, Row, Table, difference, estimate

_COLUMNS = ("Judge", "Labels by", "Agreement", "Rows", "Left out", "Same in\nboth orders", "Agreement\nof those")
_NOTE = (
    "Share of rows on which the judge's choice is the label, in percent, with 95 % intervals clustered by video. Ties, "
    "unclear rows and rows without a verdict are left out. The size of the reported sample is not stated."
)


def table(found: Agreement, key: str) -> Table:
    """The runs' own pairs, then the very same pairs where they were judged again, then what the paper reports."""
    rows = [
        Row(Cell(run.run, f"context: {run.context}"), (Cell(labels.by), *_figures(labels.judge)))
        for run in found.runs
        for labels in run.labels
    ]
    if found.difference is not None:
        rows.append(_points("second run less the first", found.difference, ""))
    rows += _same(found.same_pairs) if found.same_pairs is not None else []
    label = f"Agreement of the judge with labels, round {found.round}"
    return Table(key, label, _COLUMNS, (*rows, *_reported(found.reported)), _NOTE)


def _same(found: SamePairs) -> Sequence[Row]:
    judged = {
        "without context": found.without,
        f"context of {found.contexts_of}": found.with_context,
        "another video's": found.shuffled,
    }
    rows = [
        Row(
            Cell(f"{found.run}, policy {found.policy}", label),
            (Cell(found.by), *_figures(alignment)),
            group="" if place else "The very same pairs, judged again",
        )
        for place, (label, alignment) in enumerate(judged.items())
    ]
    if found.difference is not None:
        rows.append(_points("with less without", found.difference, f"{found.changed} choices changed"))
    return rows


def _reported(found: ReportedAgreement) -> Sequence[Row]:
    values = {"Self-rewarding": found.self_rewarding, "ISR-DPO": found.isr_dpo}
    cells = {name: (Cell("people"), Cell(f"{value:.1f}"), *[EMPTY] * 4) for name, value in values.items()}
    return [
        Row(Cell(name, "own pairs"), made, group="" if place else "Reported in the paper")
        for place, (name, made) in enumerate(cells.items())
    ]


def _figures(of: Alignment) -> tuple[Cell, ...]:
    left_out = ", ".join(f"{count} {reason}" for reason, count in of.left_out.items())
    return (
        estimate(of.share, digits=1, scale=100),
        Cell(f"{of.agreed} of {of.compared}"),
        Cell(left_out or "none"),
        estimate(of.consistency, digits=1, scale=100),
        estimate(of.consistent_share, digits=1, scale=100),
    )


def _points(head: str, value: Estimate, sub: str) -> Row:
    return Row(Cell(head, sub), (EMPTY, difference(value, digits=1, scale=100), *[EMPTY] * 4))
