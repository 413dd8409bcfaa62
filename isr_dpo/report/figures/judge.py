"""The health of the judge, the policy that chooses between its own two answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from isr_dpo.analyse.estimate import Estimate
from isr_dpo.report import drawing
from isr_dpo.report.data import RunData
from isr_dpo.report.figures.figure import Figure, Line, figure, lines
from isr_dpo.report.summary import PolicySummary


def figures(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    return _consistency(runs), _drops(runs), _label_mass(runs)


def judged(data: RunData) -> list[PolicySummary]:
    """The policies whose round was judged."""
    return [policy for policy in data.summary.policies if policy.preferences]


def _consistency(runs: Sequence[RunData]) -> Figure:
    caption = "Share of pairs with the same winner in both orders."
    series = [_line(data, data.name, "order_consistency") for data in runs]
    if len(runs) == 1:
        caption += " First position: share of verdicts for the response shown first; dashed: 50 %, no bias."
        names = {"order consistency": "order_consistency", "first position": "first_position_rate"}
        series = [_line(runs[0], label, key) for label, key in names.items()]
    return _shares("judge-agreement", "Agreement with itself", caption, series, even=0.5)


def _label_mass(runs: Sequence[RunData]) -> Figure:
    caption = "Probability that the judge gives to its two labels together; a low mass means it does not answer."
    return _shares("label-mass", "Label mass", caption, [_line(data, data.name, "label_mass") for data in runs])


def _shares(key: str, title: str, caption: str, series: Sequence[Line], *, even: float | None = None) -> Figure:
    said = {"along": "round", "form": ".1%", "share": True}
    return lines(key, title, caption, series, even=even, size=drawing.NARROW, **said)  # type: ignore[arg-type]


def _line(data: RunData, label: str, key: str) -> Line:
    kept = [policy for policy in judged(data) if key in policy.preferences]
    values = tuple(Estimate(policy.preferences[key]) for policy in kept)
    return Line(label, tuple(policy.index - 1 for policy in kept), values)


def _drops(runs: Sequence[RunData]) -> Figure:
    """Of one run by reason; of several the shares of each."""
    caption = "Rows that gave no preference, as a share of all rows; ties are pairs without a winner."
    kept = {data.name: [p for p in judged(data) if p.preferences.get("rows")] for data in runs}
    if len(runs) > 1:
        series = [
            Line(name, tuple(p.index - 1 for p in policies), tuple(Estimate(_dropped(p)) for p in policies))
            for name, policies in kept.items()
        ]
        return _shares("dropped-rows", "Dropped rows", caption, series)
    policies = kept[runs[0].name]
    reasons = _reasons(policies)

    def draw(axes: Any) -> None:
        x, floor = [p.index - 1 for p in policies], [0.0] * len(policies)
        for number, (reason, shares) in enumerate(reasons.items()):
            axes.bar(x, shares, bottom=floor, color=drawing.COLOURS[number % 5], width=0.55, label=reason)
            floor = [a + b for a, b in zip(floor, shares, strict=True)]
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_ylim(0, max(0.05, 1.1 * max(floor)))
        drawing.integers(axes, x, "round")
        if reasons:
            drawing.legend(axes)

    said = ", ".join(f"round {p.index - 1} {_dropped(p):.1%} dropped" for p in policies)
    size = drawing.NARROW
    return figure("dropped-rows", "Dropped rows and ties", caption, said, draw if policies else None, size=size)


def _dropped(policy: PolicySummary) -> float:
    return 1 - policy.preferences.get("pairs", 0) / policy.preferences["rows"]


def _reasons(policies: Sequence[PolicySummary]) -> Mapping[str, list[float]]:
    """Shares by round, of reasons that occur."""
    names = dict.fromkeys(reason for policy in policies for reason in policy.dropped)
    shares = {name: [p.dropped.get(name, 0) / p.preferences["rows"] for p in policies] for name in names}
    return {name: values for name, values in shares.items() if any(values)}
