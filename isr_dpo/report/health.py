"""Tables on how well the parts work: the judge with its guards, the grader with what it cost, training, time."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.config import Judge
from isr_dpo.records import UNSCORED
from isr_dpo.report.data import RunData
from isr_dpo.report.figures.clock import SHOWN, wall
from isr_dpo.report.figures.judge import judged
from isr_dpo.report.summary import Metrics, PolicySummary
from isr_dpo.report.tables import EMPTY, NONE, Cell, Row, Table, number, percent, seconds
from isr_dpo.times import DONE, StepTime
from isr_dpo.titles import title


def judge_note(judge: Judge) -> str:
    """Who judged."""
    if judge.by != "self":
        return f"The judge is a control, {judge.by}: it is asked for no probabilities."
    orders = "in both orders" if judge.orders == "both" else "in one order"
    return f"The judge is the policy itself, choosing between its own two answers {orders}."


def judge(runs: Sequence[RunData]) -> Table | None:
    """A row a round: the judge's figures, each with the guard that watches it."""
    rows = [
        Row(Cell(f"round {p.index - 1}"), _judge_cells(data, p), group=_group(runs, data, p, judged(data)))
        for data in runs
        for p in judged(data)
    ]
    columns = (
        *("Round", "Order\nconsistency", "Pairs of\nall rows", "Words\nchosen", "Words\nrejected", "Ties"),
        *("First\nposition", "Label\nmass", "Dropped rows"),
    )
    note = "Limits are the recipe's guards, which stop a loop that is dying; a figure beyond its limit is coloured."
    return Table("judge", "The judge by round", columns, tuple(rows), note) if rows else None


def _judge_cells(data: RunData, policy: PolicySummary) -> tuple[Cell, ...]:
    metrics, guards = policy.preferences, data.recipe.guards
    first = judged(data)[0].preferences.get("chosen_words", 0.0)
    growth = metrics.get("chosen_words", 0.0) / first if first else 1.0
    pairs = metrics.get("pairs", 0.0) / metrics["rows"] if metrics.get("rows") else 0.0
    consistency = metrics.get("order_consistency")
    dropped = ", ".join(f"{reason} {count}" for reason, count in policy.dropped.items() if count)
    return (
        _guarded(
            percent(metrics, "order_consistency"),
            f"limit {100 * guards.min_order_consistency:.0f} %",
            consistency is not None and consistency < guards.min_order_consistency,
        ),
        _guarded(
            f"{100 * pairs:.1f} %", f"limit {100 * guards.min_pair_fraction:.0f} %", pairs < guards.min_pair_fraction
        ),
        _guarded(
            number(metrics, "chosen_words", digits=1),
            f"× {growth:.2f}, limit {guards.max_chosen_growth:g}",
            growth > guards.max_chosen_growth,
        ),
        Cell(number(metrics, "rejected_words", digits=1)),
        Cell(percent(metrics, "tie_rate")),
        Cell(percent(metrics, "first_position_rate")),
        Cell(percent(metrics, "label_mass")),
        Cell(dropped or "none"),
    )


def _guarded(text: str, limit: str, beyond: bool) -> Cell:
    return EMPTY if text == NONE else Cell(text, limit, "bad" if beyond else "")


def grader(runs: Sequence[RunData]) -> Table | None:
    """A row a graded set of a policy: what stayed unscored and why, what was bought and what it cost."""
    rows: list[Row] = []
    for data in runs:
        graded = [(p, name, metrics) for p in data.summary.policies for name, metrics in p.evaluation.items()]
        for place, (policy, name, metrics) in enumerate(graded):
            made = data.run.graded(policy.index, name)
            head = Cell(policy.name, name)
            who = Cell(NONE) if made is None else Cell(made.grader.label, f"{made.grader.protocol} protocol")
            group = data.name if len(runs) > 1 and place == 0 else ""
            rows.append(Row(head, (who, *_grader_cells(metrics)), group=group))
    columns = (
        *("Policy, set", "Grader", "Scored", "Unscored", "Why unscored", "Accuracy\nread strictly"),
        *("As the public\nscripts read", "Bought", "Cost", "Tokens"),
    )
    note = (
        "Unscored answers count neither as right nor as wrong; the public scripts read a figure out of nearly any "
        "reply. Bought: replies paid for by this evaluation; the ledger or the packaged rules had the others, at no "
        "cost. Tokens are those of what was bought."
    )
    return Table("grader", "The grader by policy and set", columns, tuple(rows), note) if rows else None


def _grader_cells(metrics: Metrics) -> tuple[Cell, ...]:
    reasons = {reason: metrics.get(f"unscored_{reason}", 0.0) for reason in UNSCORED}
    said = ", ".join(f"{reason.replace('_', ' ')} {count:.0f}" for reason, count in reasons.items() if count)
    bought = metrics.get("bought", 0.0)
    unscored = metrics.get("unscored", 0.0)
    return (
        Cell(f"{metrics.get('scored', 0):.0f} of {metrics.get('rows', 0):.0f}"),
        Cell(f"{unscored:.0f}", tone="bad" if unscored else ""),
        Cell(said or ("not recorded" if unscored else "none"), tone="" if said else "quiet"),
        *(Cell(percent(metrics, f"{reading}_accuracy")) for reading in ("strict", "compat")),
        Cell(f"{bought:.0f}") if "bought" in metrics else EMPTY,
        Cell(f"${metrics['cost_usd']:.2f}") if bought else EMPTY,
        Cell(number(metrics, "prompt_tokens"), f"and {number(metrics, 'completion_tokens')} out") if bought else EMPTY,
    )


def training(runs: Sequence[RunData]) -> Table | None:
    """A row a training."""
    rows = []
    for data in runs:
        trained = [policy for policy in data.summary.policies if policy.training]
        for policy in trained:
            head = Cell("seed DPO" if policy.index == 1 else f"round {policy.index - 1}")
            rows.append(Row(head, _training_cells(policy.training), group=_group(runs, data, policy, trained)))
    columns = (
        *("Round", "Pairs", "Steps", "Loss at\nfirst", "Loss at\nlast", "Reward\nmargin", "Update\nkept"),
        *("Pairs\na second", "MFU", "× of the\nfloor"),
    )
    note = (
        "Update kept: how much of the round's update the stored policy holds once its weights are rounded; the next "
        "round starts from the whole of it. MFU: share of the devices' peak that training made use of. × of the floor: "
        "seconds a pair over the least that its tokens need at that peak."
    )
    return Table("training", "Training by round", columns, tuple(rows), note) if rows else None


def _training_cells(m: Metrics) -> tuple[Cell, ...]:
    return (
        *(Cell(number(m, key)) for key in ("pairs", "steps")),
        *(Cell(number(m, key, digits=3)) for key in ("loss_first", "loss_last", "margin")),
        Cell(percent(m, "update_kept")),
        Cell(number(m, "pairs_per_second", digits=2)),
        Cell(percent(m, "mfu")),
        Cell(number(m, "floor_ratio", digits=2)),
    )


def clock(data: RunData) -> Table | None:
    """A row a step that has a record: how long, how much, how fast."""
    steps = [time for time in data.times if not time.share]
    alone = {(time.step, time.index) for time in steps}
    steps += [time for time in data.times if time.share == 1 and (time.step, time.index) not in alone]
    rows = [_clock_row(data.times, time) for time in steps]
    columns = ("Step", "Time", "Did", "A second", "Attempts")
    note = (
        "Of the work itself: a step that stood complete is not counted again. A step shared by several pods takes as "
        "long as the slowest share and the task that completes it."
    )
    return (
        Table(f"clock-{data.run.folder}", f"Time of {data.name} by step", columns, tuple(rows), note) if rows else None
    )


def _clock_row(times: Sequence[StepTime], time: StepTime) -> Row:
    spent = wall(times, time.step, time.index)
    pods = sum(1 for other in times if (other.step, other.index) == (time.step, time.index) and other.share)
    ended = [attempt.ended for attempt in time.attempts if attempt.ended != DONE]
    attempts = f"{len(time.attempts)}" + (f" ({', '.join(dict.fromkeys(ended))})" if ended else "")
    did = NONE if time.rows is None else f"{time.rows:,} {time.unit}"
    fast = NONE if not time.rows or not spent or time.step not in SHOWN else _rate(time.rows / spent)
    shared = f"{pods} pods" if pods else ""
    return Row(
        Cell(title(time.step, time.index)), (Cell(seconds(spent), shared), Cell(did), Cell(fast), Cell(attempts))
    )


def _rate(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def _group(runs: Sequence[RunData], data: RunData, policy: PolicySummary, of_run: Sequence[PolicySummary]) -> str:
    return data.name if len(runs) > 1 and policy is of_run[0] else ""


def graders_named(runs: Sequence[RunData]) -> str:
    """Whoever graded the leading sets, once each."""
    return ", ".join(dict.fromkeys(data.grader for data in runs))
