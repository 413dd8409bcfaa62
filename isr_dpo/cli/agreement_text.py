"""The agreement of judge and people as tables in a terminal."""

from __future__ import annotations

from rich.console import RenderableType
from rich.text import Text

from isr_dpo.analyse.agreement import Agreement, RunAgreement
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.verdicts import Alignment
from isr_dpo.cli.analyse_text import NONE, add_row, estimate, new_table

NOTE = (
    "Reported: the paper's Table 4, self-rewarding and ISR-DPO at their own pairs; its sample's size is not stated. "
    "Intervals are clustered by video. Ties, unclear rows and rows without a verdict are left out."
)


def agreement(found: Agreement) -> list[RenderableType]:
    """Table 4, then who labelled, then how far they agree with each other."""
    table = new_table(f"The judge's choices that are the label's (Table 4), round {found.round}", *_COLUMNS)
    for run in found.runs:
        for labels in run.labels:
            add_row(table, f"{run.run}, context {run.context}", labels.by, *_figures(labels.judge))
    if found.difference is not None:
        add_row(table, "second less first, own pairs", "", _points(found.difference))
    same = found.same_pairs
    if same is not None:
        table.add_section()
        who = f"{same.run}, policy {same.policy}, same pairs"
        add_row(table, f"{who}, without context", same.by, *_figures(same.without))
        add_row(table, f"{who}, context of {same.contexts_of}", same.by, *_figures(same.with_context))
        add_row(table, f"{who}, another video's context", same.by, *_figures(same.shuffled))
        rows = same.difference.rows if same.difference else 0
        add_row(
            table,
            f"with less without, paired, {same.changed} choices changed",
            same.by,
            _points(same.difference),
            str(rows),
        )
    table.add_section()
    add_row(table, "reported: self-rewarding", "human", f"{found.reported.self_rewarding:.1f}")
    add_row(table, "reported: ISR-DPO", "human", f"{found.reported.isr_dpo:.1f}")
    return [table, *[part for run in found.runs for part in _labels(run)], Text(NOTE, style="dim")]


_COLUMNS = (
    *("judge", "labels by", "agreement, %", "rows", "left out"),
    *("same in both orders, %", "agreement of those, %", "prefers what stands first, %"),
)


def _figures(of: Alignment) -> tuple[str, ...]:
    return (
        estimate(of.share, digits=1, scale=100),
        str(of.compared),
        ", ".join(f"{count} {reason}" for reason, count in of.left_out.items()) or "none",
        estimate(of.consistency, digits=1, scale=100),
        estimate(of.consistent_share, digits=1, scale=100),
        estimate(of.first_position, digits=1, scale=100),
    )


def _labels(run: RunAgreement) -> list[RenderableType]:
    who = new_table(
        f"Labels of {run.run}", "by", "rows", "ties", "unclear", "divided", "first shown preferred, %", "seconds a row"
    )
    for labels in run.labels:
        counts = (str(n) for n in (labels.labelled, labels.ties, labels.unclear, labels.divided))
        seconds = NONE if labels.seconds is None else f"{labels.seconds:.1f}"
        add_row(who, labels.by, *counts, estimate(labels.first_position, digits=1, scale=100), seconds)
    parts: list[RenderableType] = [who]
    if run.between:
        pairs = new_table(
            f"Annotators of {run.run} with each other",
            "first",
            "second",
            "both labelled",
            "same, %",
            "kappa",
            "kappa with ties",
        )
        for pair in run.between:
            kappas = (NONE if kappa is None else f"{kappa:.2f}" for kappa in (pair.kappa, pair.kappa_with_ties))
            add_row(
                pairs,
                pair.first,
                pair.second,
                str(pair.both_labelled),
                estimate(pair.share, digits=1, scale=100),
                *kappas,
            )
        parts.append(pairs)
    if run.other_rows:
        parts.append(Text(f"{run.other_rows} choices between other answers are not counted.", style="dim"))
    return parts


def _points(found: Estimate | None) -> str:
    return estimate(found, digits=1, scale=100, sign=True)
