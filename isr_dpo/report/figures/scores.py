"""Accuracy and score by policy, on the leading set."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.analyse.estimate import Estimate
from isr_dpo.report.data import RunData
from isr_dpo.report.figures.figure import Figure, Line, lines
from isr_dpo.report.summary import Metrics


def figures(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """A line a run."""
    return _graded(runs, "accuracy", "Accuracy"), _graded(runs, "score", "Score")


def _graded(runs: Sequence[RunData], key: str, title: str) -> Figure:
    scale, unit, form = (100.0, " %", ".1f") if key == "accuracy" else (1.0, "", ".2f")
    series = [_line(data, key, scale) for data in runs]
    where = ", ".join(dict.fromkeys(data.summary.dev for data in runs))
    who = ", ".join(dict.fromkeys(data.grader for data in runs))
    caption = f"{title} by policy on {where}, with 95 % intervals clustered by video; {who}."
    return lines(f"{key}-by-policy", f"{title} by policy", caption, series, along="policy", form=form, unit=unit)


def _line(data: RunData, key: str, scale: float) -> Line:
    found = [(policy.index, policy.evaluation.get(data.summary.dev, {})) for policy in data.summary.policies]
    graded = [(index, _estimate(metrics, key).scaled(scale)) for index, metrics in found if key in metrics]
    return Line(data.name, tuple(index for index, _ in graded), tuple(value for _, value in graded))


def _estimate(metrics: Metrics, key: str) -> Estimate:
    return Estimate(metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high"))
