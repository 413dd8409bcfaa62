"""The page's sections between the result and the samples: figures, with the tables that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from isr_dpo.report import agreement, health, paper
from isr_dpo.report.data import Page, RunData
from isr_dpo.report.figures import clock, judge, length, scores, training, versus
from isr_dpo.report.figures.figure import Figure
from isr_dpo.report.tables import Table


@dataclass(frozen=True)
class Fold:
    """A table behind a line that opens it, or (`open`) in full view."""

    title: str
    table: Table
    open: bool = False


@dataclass(frozen=True)
class Section:
    """`key` is its place in the page's address, `short` its name in the navigation."""

    key: str
    short: str
    title: str
    note: str
    figures: tuple[Figure, ...] = ()
    folds: tuple[Fold, ...] = ()


_SHORT_ROWS = 14


def sections(page: Page) -> list[Section]:
    """Those that there is something to say in; figures of one run stand empty until their files are there."""
    return [
        _scores(page),
        _length(page),
        *_versus(page),
        _judge(page),
        _grader(page),
        _training(page),
        *_time(page),
        *_paper(page),
    ]


def _scores(page: Page) -> Section:
    note = f"{health.graders_named(page.runs)}; bars are 95 % intervals clustered by video."
    return Section("accuracy", "Scores", "Accuracy and score", note[0].upper() + note[1:], scores.figures(page.runs))


def _length(page: Page) -> Section:
    note = (
        "A judge that favours longer answers makes the policy verbose: watch words and ratio rise together. Length is "
        "a proxy; what answers claim without support is counted by isr-dpo analyse claims."
    )
    return Section("length", "Length", "Length of responses and answers", note, length.figures(page.runs))


def _versus(page: Page) -> Iterator[Section]:
    wins = [found for data in page.runs for found in data.costly.win_rates]
    claims = [found for data in page.runs for found in data.costly.claims]
    figures = [versus.win_rate(found, f"win-rate-{number}") for number, found in enumerate(wins)]
    figures += [versus.claims(claims, "claims")] if claims else []
    folds = [
        Fold(f"{found.first.label} against {found.second.label}", versus.table(found, f"wins-{number}"))
        for number, found in enumerate(wins)
    ]
    if figures:
        note = "Analyses that asked a grader of their own; each says whom."
        yield Section(
            "analyses", "Head to head", "Head to head, and unsupported claims", note, tuple(figures), tuple(folds)
        )


def _judge(page: Page) -> Section:
    said: dict[str, list[str]] = {}
    for data in page.runs:
        if not data.recipe.is_benchmark:
            said.setdefault(health.judge_note(data.recipe.judge), []).append(data.name)
    notes = [*said] if len(said) == 1 else [f"{', '.join(names)}: {note}" for note, names in said.items()]
    folds = _fold("The judge by round, with its guards", health.judge(page.runs), open_=True)
    found = [one for data in page.runs for one in data.costly.agreements]
    for number, one in enumerate(found):
        folds += _fold(
            f"Choices beside labels, round {one.round}", agreement.table(one, f"agreement-{number}"), open_=True
        )
    return Section("judge", "Judge", "Health of the judge", " ".join(notes), judge.figures(page.runs), folds)


def _grader(page: Page) -> Section:
    waiting = [f"{_of(page.runs, data)}{place}" for data in page.runs for place in data.pending]
    note = "The grader is the outside model, or the packaged rules, that scores answers against the ground truth."
    graded = [metrics for data in page.runs for p in data.summary.policies for metrics in p.evaluation.values()]
    if graded:
        unscored, rows = (sum(metrics.get(key, 0.0) for metrics in graded) for key in ("unscored", "rows"))
        note += f" Of {rows:,.0f} answers that were graded {unscored:,.0f} are unscored."
    for data in page.runs:
        if data.spent.requests:
            note += (
                f" {data.name} has spent ${data.spent.usd:.2f} on it at the most, in {data.spent.requests:,} requests"
            )
            note += f"{_ceilings(data)}."
    if waiting:
        note += f" Waiting for it: {', '.join(waiting)}; isr-dpo evaluate completes them."
    return Section(
        "grader",
        "Grader",
        "Health of the grader",
        note,
        (),
        _fold("The grader by policy and set", health.grader(page.runs), open_=True),
    )


def _ceilings(data: RunData) -> str:
    asked = data.recipe.evaluate
    limits = [f"{asked.max_requests:,} requests"] if asked.max_requests is not None else []
    limits += [f"${asked.max_cost_usd:.2f}"] if asked.max_cost_usd is not None else []
    return f", of at most {' and '.join(limits)}" if limits else ""


def _training(page: Page) -> Section:
    note = "DPO, every optimiser step. "
    note += (
        "Faint as logged, strong the running mean; dotted lines part the rounds."
        if len(page.runs) == 1
        else "Running means, rounds one after another."
    )
    folds = _fold("Training as a table", health.training(page.runs))
    return Section("training", "Training", "Training", note, training.figures(page.runs), folds)


def _time(page: Page) -> Iterator[Section]:
    folds = [Fold(f"{data.name}: every step", table) for data in page.runs if (table := health.clock(data)) is not None]
    if folds:
        note = "What each step took, as it recorded itself when it was done."
        yield Section("time", "Time", "Time a step", note, clock.figures(page.runs), tuple(folds))


def _paper(page: Page) -> Iterator[Section]:
    found = [paper.table(one) for one in page.paper]
    folds = [Fold(one.title, one.table, open=one.ours) for one in found]
    judges = {data.name: data.recipe.judge.by for data in page.runs}
    designs = None if page.designs is None else paper.designs(page.designs, judges)
    if designs is not None:
        folds.insert(0, Fold("Context designs of these runs", designs, open=True))
    ours = sum(one.ours for one in found)
    note = "The paper's tables: reported values come from graders that are no longer served, and are for orientation."
    if not ours:
        note += " No policy here is graded on their sets."
    yield Section("paper", "Paper", "The paper's tables", note, (), tuple(folds))


def _fold(title: str, table: Table | None, *, open_: bool = False) -> tuple[Fold, ...]:
    """A long table stays folded."""
    return () if table is None else (Fold(title, table, open=open_ and len(table.rows) <= _SHORT_ROWS),)


def _of(runs: Sequence[RunData], data: RunData) -> str:
    return f"{data.name}, " if len(runs) > 1 else ""
