"""The headline figures in words, a row a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isr_dpo.report.summary import Metrics, PolicySummary, Summary

NONE = "–"
RULES = "rule-based grader (no model)"


@dataclass(frozen=True)
class Row:
    """A policy. Cells are text; one without a figure holds a dash."""

    policy: str
    best: bool
    state: str
    """Why figures are missing; empty where the policy is graded."""
    accuracy: str
    accuracy_interval: str
    score: str
    score_interval: str
    unscored: str
    words: str
    reward_accuracy: str
    order_consistency: str
    pairs: str
    dropped: str


@dataclass(frozen=True)
class SetRow:
    """A policy's accuracy by evaluation set; an ungraded set is absent."""

    policy: str
    accuracy: Mapping[str, str]


def grader_label(name: str, model: str | None) -> str:
    """How a grader is called wherever a figure of its making appears."""
    return f"graded by {model or name}" if model or name not in ("rules", "rule-based") else RULES


def rows(summary: Summary) -> list[Row]:
    """policy-01 to the last."""
    best = summary.best
    return [_row(summary, policy, best=policy is best) for policy in summary.policies]


def set_rows(summary: Summary) -> list[SetRow]:
    """Accuracy on every set, of policies that any set is graded for."""
    return [
        SetRow(p.name, {name: _with_interval(m) for name, m in p.evaluation.items()})
        for p in summary.policies
        if p.evaluation
    ]


def verdict(summary: Summary) -> str:
    """The result in a sentence or two."""
    best = summary.best
    if best is None:
        return "No policy is graded yet."
    said = f"Best so far is {best.name}: {_with_interval(best.evaluation[summary.dev])} correct on {summary.dev}."
    start = summary.policies[0]
    if best is start or "accuracy" not in start.evaluation.get(summary.dev, {}):
        return said
    return f"{said} {start.name} had {_with_interval(start.evaluation[summary.dev])}."


def is_trained(summary: Summary, policy: PolicySummary) -> bool:
    """Whether the policy exists; policy-01 without seed preferences is the start itself."""
    alias = policy.index == 1 and summary.dataset.get("seed_rows") == 0
    return bool(policy.training) or bool(policy.evaluation) or alias


def _row(summary: Summary, policy: PolicySummary, *, best: bool) -> Row:
    graded = policy.evaluation.get(summary.dev, {})
    state = ""
    if "accuracy" not in graded:
        state = "evaluation pending" if is_trained(summary, policy) else "not finished"
        state = "none scored" if graded else state
    judged = policy.preferences
    dropped = ", ".join(f"{reason} {count}" for reason, count in policy.dropped.items() if count)
    return Row(
        policy=policy.name,
        best=best,
        state=state,
        accuracy=percent(graded, "accuracy"),
        accuracy_interval=_interval(graded, "accuracy", scale=100, digits=1),
        score=number(graded, "score", digits=2),
        score_interval=_interval(graded, "score", scale=1, digits=2),
        unscored=f"{graded['unscored']:.0f} of {graded['rows']:.0f}" if {"unscored", "rows"} <= set(graded) else NONE,
        words=number(graded, "words", digits=1),
        reward_accuracy=percent(policy.training, "reward_accuracy"),
        order_consistency=percent(judged, "order_consistency"),
        pairs=f"{judged['pairs']:.0f} of {judged['rows']:.0f}" if {"pairs", "rows"} <= set(judged) else NONE,
        dropped=(dropped or "none") if judged else NONE,
    )


def percent(metrics: Metrics, key: str) -> str:
    return f"{100 * metrics[key]:.1f} %" if key in metrics else NONE


def number(metrics: Metrics, key: str, *, digits: int) -> str:
    return f"{metrics[key]:.{digits}f}" if key in metrics else NONE


def _interval(metrics: Metrics, key: str, *, scale: float, digits: int) -> str:
    low, high = f"{key}_low", f"{key}_high"
    if low not in metrics or high not in metrics:
        return ""
    return f"{scale * metrics[low]:.{digits}f}–{scale * metrics[high]:.{digits}f}"


def _with_interval(metrics: Metrics) -> str:
    interval = _interval(metrics, "accuracy", scale=100, digits=1)
    return percent(metrics, "accuracy") + (f" ({interval})" if interval else "")
