"""The headline figures in words: a sentence a run, and a row a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isr_dpo.analyse.estimate import Estimate
from isr_dpo.report.differences import Place, paired
from isr_dpo.report.summary import Metrics, PolicySummary, Summary
from isr_dpo.report.tables import EMPTY, NONE, Cell, Row, Table, difference, interval, number, percent, seconds

if TYPE_CHECKING:
    from isr_dpo.report.data import RunData


@dataclass(frozen=True)
class Tile:
    """A figure to see first."""

    text: str
    what: str
    sub: str = ""
    tone: str = ""


def graded_by(*labels: str) -> str:
    """How graders are called wherever a figure of their making appears."""
    return " and ".join(label if label.startswith("rule-based grader") else f"graded by {label}" for label in labels)


def verdict(data: RunData) -> str:
    """A run's result in a sentence or two."""
    summary = data.summary
    best = summary.best
    if best is None:
        return "No policy is graded yet."
    said = f"{best.name} answers {_said(best.evaluation[summary.dev])} of {summary.dev} correctly"
    if data.recipe.is_benchmark:
        return f"{said}; nothing is trained in this run, it is a benchmark."
    start = summary.policies[0]
    if best is start or "accuracy" not in start.evaluation.get(summary.dev, {}):
        return f"{said}, the best so far."
    return f"{said}, the best so far; {start.name} answered {_said(start.evaluation[summary.dev])}."


def tiles(data: RunData) -> list[Tile]:
    """The best policy, what it gained, what was not scored, the judge, the time."""
    summary, best = data.summary, data.summary.best
    made: list[Tile] = []
    if best is not None:
        graded = best.evaluation[summary.dev]
        what = f"correct on {summary.dev}, {best.name}"
        made.append(Tile(percent(graded, "accuracy"), what, interval(graded, "accuracy", scale=100, digits=1)))
        gain = _gain(data, best)
        if gain is not None:
            made.append(Tile(gain.text, f"points since {summary.policies[0].name}", gain.sub, gain.tone))
        made.append(Tile(unscored(graded), "answers unscored"))
    judged = [policy for policy in summary.policies if "order_consistency" in policy.preferences]
    if judged:
        last = judged[-1]
        what = f"of verdicts kept when the order is swapped, round {last.index - 1}"
        made.append(Tile(percent(last.preferences, "order_consistency"), what))
    if data.times:
        made.append(Tile(seconds(sum(time.seconds for time in data.times)), "of work by all steps"))
    return made


def table(runs: Sequence[RunData]) -> Table:
    """A row a policy, those of each run together."""
    rows = [
        row(data, policy, group=data.name if len(runs) > 1 and policy is data.summary.policies[0] else "")
        for data in runs
        for policy in data.summary.policies
    ]
    return Table(
        "headline",
        "Results by policy",
        (
            *("Policy", "Accuracy", "Score", "Unscored", "Grader", "Words an\nanswer", "Reward\naccuracy"),
            *("Order\nconsistency", "Preference\npairs", "Dropped rows"),
        ),
        tuple(rows),
    )


def row(data: RunData, policy: PolicySummary, *, group: str = "") -> Row:
    """A policy's figures on its run's leading set, and those of the round that made it."""
    summary = data.summary
    graded, judged = policy.evaluation.get(summary.dev, {}), policy.preferences
    best = policy is summary.best and len(summary.policies) > 1
    dropped = ", ".join(f"{reason} {count}" for reason, count in policy.dropped.items() if count)
    accuracy = Cell(percent(graded, "accuracy"), interval(graded, "accuracy", scale=100, digits=1))
    score = Cell(number(graded, "score", digits=2), interval(graded, "score", digits=2))
    if "accuracy" not in graded:
        accuracy, score = Cell(_state(data, policy), tone="quiet"), EMPTY
    made = data.run.graded(policy.index, summary.dev)
    return Row(
        Cell(policy.name, f"best on {summary.dev}" if best else ""),
        (
            accuracy,
            score,
            Cell(unscored(graded)),
            Cell(made.grader.label if made is not None else NONE),
            Cell(number(graded, "words", digits=1)),
            Cell(percent(policy.training, "reward_accuracy")),
            Cell(percent(judged, "order_consistency")),
            Cell(f"{judged['pairs']:.0f} of {judged['rows']:.0f}" if {"pairs", "rows"} <= set(judged) else NONE),
            Cell((dropped or "none") if judged else NONE),
        ),
        best=best,
        group=group,
    )


def sets_table(runs: Sequence[RunData]) -> Table | None:
    """Accuracy and score on every set, each with its unscored; None where no run has a set beside the leading one."""
    if all(len(data.recipe.data.sets) < 2 for data in runs):
        return None
    names = list(dict.fromkeys(name for data in runs for name in data.recipe.data.sets))
    rows: list[Row] = []
    for data in runs:
        graded = [policy for policy in data.summary.policies if policy.evaluation]
        for policy in graded:
            group = data.name if len(runs) > 1 and policy is graded[0] else ""
            rows.append(Row(Cell(policy.name), tuple(_on_set(data, policy, name) for name in names), group=group))
    if not rows:
        return None
    return Table("sets", "Accuracy and score by evaluation set", ("Policy", *names), tuple(rows))


def different_graders(runs: Sequence[RunData]) -> list[str]:
    """A sentence a set whose figures come from different graders, which makes them not comparable."""
    said = []
    for name in dict.fromkeys(name for data in runs for name in data.recipe.data.sets):
        by: dict[str, list[str]] = {}
        for data in runs:
            if name in data.recipe.data.sets:
                found = (data.run.graded(index, name) for index in data.run.policies)
                for words in dict.fromkeys(made.grader.words for made in found if made is not None):
                    by.setdefault(words, []).append(data.name)
        if len(by) > 1:
            said.append(f"{name}: " + "; ".join(f"{', '.join(names)} by {words}" for words, names in by.items()))
    return said


def is_trained(summary: Summary, policy: PolicySummary) -> bool:
    """Whether the policy exists; policy-00 and policy-01 without seed preferences are the start itself."""
    alias = policy.index == 0 or (policy.index == 1 and summary.dataset.get("seed_rows") == 0)
    return bool(policy.training) or bool(policy.evaluation) or alias


def unscored(graded: Metrics) -> str:
    """`3 of 400`."""
    return f"{graded['unscored']:.0f} of {graded['rows']:.0f}" if {"unscored", "rows"} <= set(graded) else NONE


def _state(data: RunData, policy: PolicySummary) -> str:
    """Why figures are missing."""
    if policy.evaluation.get(data.summary.dev):
        return "none scored"
    return "evaluation pending" if is_trained(data.summary, policy) else "not finished"


def _gain(data: RunData, best: PolicySummary) -> Cell | None:
    name, start = data.summary.dev, data.summary.policies[0]
    if best is start:
        return None
    found = paired(Place(data.run, start.index, name), Place(data.run, best.index, name))
    if found is None or found.comparison is None:
        return None
    return difference(Estimate.of(found.comparison.accuracy), digits=1, scale=100)


def _on_set(data: RunData, policy: PolicySummary, name: str) -> Cell:
    graded = policy.evaluation.get(name, {})
    if not graded:
        return EMPTY
    bounds = interval(graded, "accuracy", scale=100, digits=1)
    sub = f"{bounds}; score {number(graded, 'score', digits=2)}; {unscored(graded)} unscored"
    return Cell(percent(graded, "accuracy"), sub)


def _said(graded: Metrics) -> str:
    bounds = interval(graded, "accuracy", scale=100, digits=1)
    return percent(graded, "accuracy") + (f" ({bounds})" if bounds else "")
