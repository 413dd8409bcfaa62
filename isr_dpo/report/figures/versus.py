"""What an outside model says of answers beside their score: who is nearer the truth (Figure 6), and what nothing
supports (Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from isr_dpo.analyse.claims import Claims
from isr_dpo.analyse.win_rate import SetWins, WinRate
from isr_dpo.report import drawing
from isr_dpo.report.figures.figure import Figure, Line, figure, lines
from isr_dpo.report.headline import graded_by
from isr_dpo.report.tables import Cell, Row, Table, difference, estimate

_SHARES = (("won", "win_share", 0), ("tied", "tie_share", 4), ("lost", "loss_share", 1))


def win_rate(found: WinRate, key: str) -> Figure:
    """Shares won, tied and lost by the first system, a bar a set (Figure 6)."""
    sets = [one for one in found.sets if one.win_share is not None][::-1]

    def draw(axes: Any) -> None:
        begin = [0.0] * len(sets)
        for label, name, colour in _SHARES:
            values = [_share(one, name) for one in sets]
            paint = drawing.COLOURS[colour]
            axes.barh(range(len(sets)), values, left=begin, color=paint, height=0.6, label=label)
            begin = [a + b for a, b in zip(begin, values, strict=True)]
        axes.set_yticks(range(len(sets)), [one.set for one in sets])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=False, axis="y")
        drawing.legend(axes)

    said = "; ".join(
        f"{one.set}: won {_share(one, 'win_share'):.1%}, tied {_share(one, 'tie_share'):.1%}, lost "
        f"{_share(one, 'loss_share'):.1%}"
        for one in reversed(sets)
    )
    caption = (
        f"{found.first.label} against {found.second.label}: whose answer is nearer the ground truth, asked in both "
        f"orders (the paper's Fig. 6); {graded_by(found.grader.label)}."
    )
    size = drawing.WIDE[0], 0.8 + 0.4 * max(2, len(sets))
    return figure(key, "Head to head", caption, said, draw if sets else None, size=size)


def _share(one: SetWins, name: str) -> float:
    value = getattr(one, name)
    return 0.0 if value is None else float(value.value)


def claims(found: Sequence[Claims], key: str) -> Figure:
    """Claims an answer that nothing supports, by policy, a line an analysis (Figure 2 in figures)."""
    series = [_line(one) for one in found]
    sets = ", ".join(dict.fromkeys(one.set for one in found))
    who = graded_by(*dict.fromkeys(one.grader.label for one in found))
    unscored, answers = (sum(getattr(p, key) for one in found for p in one.policies) for key in ("unscored", "answers"))
    caption = (
        f"Claims an answer that its clip's caption does not support, on {sets}, with 95 % intervals; {who}; "
        f"{unscored} of {answers} answers unscored."
    )
    return lines(key, "Unsupported claims an answer", caption, series, along="policy", form=".2f")


def _line(found: Claims) -> Line:
    kept = [(one.policy, one.unsupported) for one in found.policies if one.unsupported is not None]
    return Line(found.run, tuple(policy for policy, _ in kept), tuple(value for _, value in kept))


def table(found: WinRate, key: str) -> Table:
    """The same in figures, a row a set."""
    rows = tuple(_row(one) for one in found.sets)
    columns = ("Set", "Won", "Tied", "Lost", "Unscored", "Lead", "Words", "Words of\nthe other")
    limit = "all questions" if found.limit is None else f"{found.limit} questions a set, drawn by seed {found.seed}"
    note = (
        f"{graded_by(found.grader.label)}; {limit}; {found.bill.bought} of {found.bill.asked} replies bought at "
        f"${found.bill.cost_usd:.2f}. Lead: share won less share lost, in points, with its 95 % interval. A pair is "
        "tied where the two orders disagree."
    )
    return Table(key, "Head to head by set", columns, rows, note[0].upper() + note[1:])


def _row(one: SetWins) -> Row:
    scored = one.wins + one.losses + one.ties
    return Row(
        Cell(one.set),
        (
            estimate(one.win_share, digits=1, scale=100, unit=" %"),
            Cell(f"{one.ties} of {scored}", f"{one.identical} equal, {one.inconsistent} inconsistent"),
            estimate(one.loss_share, digits=1, scale=100, unit=" %"),
            Cell(f"{one.unscored} of {scored + one.unscored}"),
            difference(one.lead, digits=1, scale=100),
            estimate(one.words, digits=1),
            estimate(one.other_words, digits=1),
        ),
    )
