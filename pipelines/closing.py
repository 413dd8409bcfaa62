"""What the terminal shows at the end of a run: a line a policy, or of a benchmark a line a set."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from isr_dpo import layout
from isr_dpo.analyse.runs import Run
from isr_dpo.config import Recipe, Tracking
from isr_dpo.report.summary import PolicySummary, Summary, summarise

NOTHING = "–"


def show(console: Console, run_uri: str, recipe: Recipe) -> None:
    """The closing table, and where the report, the models and MLflow's pages are."""
    summary, graded_by = summarise(run_uri, recipe), _graded_by(run_uri, recipe)
    if recipe.is_benchmark:
        console.print(set_table(summary, recipe, graded_by=graded_by))
        console.print()
        _say(console, {**_pages(run_uri, recipe), "compare": f"{_program('isr-dpo')} compare {run_uri} OTHER-RUN"})
        return
    console.print(table(summary, graded_by=graded_by))
    console.print()
    for policy in summary.policies:
        if dropped := ", ".join(f"{reason} {count}" for reason, count in policy.dropped.items() if count):
            console.print(f"dropped on the way to {policy.name}: {dropped}", highlight=False)
    if summary.best is not None:
        console.print(f"best by {summary.dev} accuracy: {summary.best.name}", highlight=False)
    name, tracking = recipe.model.registered_name, recipe.tracking.uri
    elsewhere = "" if tracking == Tracking().uri else f" --tracking-uri {tracking}"
    asked = f"ask VIDEO 'QUESTION' --model models:/{name}@challenger{elsewhere}"
    commands = {
        "ask it": f"{_program('isr-dpo')} {asked}",
        "promote": f"{_program('isr-dpo')} promote {name}{elsewhere}",
    }
    _say(console, {**_pages(run_uri, recipe), **commands})


def _graded_by(run_uri: str, recipe: Recipe) -> str:
    """Whoever graded what the table shows, in words."""
    run = Run(run_uri, recipe, recipe.name)
    sets = recipe.sets_at(0) if recipe.is_benchmark else [recipe.leading_set]
    graded = [run.graded(policy, name) for policy in recipe.policies for name in sets]
    labels = dict.fromkeys(each.grader.label for each in graded if each is not None)
    return f"graded by {' and '.join(labels)}" if labels else "not graded yet"


def _pages(run_uri: str, recipe: Recipe) -> dict[str, str]:
    uri = recipe.tracking.uri
    served = uri.startswith(("http://", "https://"))  # a server has pages of its own
    mlflow = uri if served else f"{_program('mlflow')} ui --backend-store-uri {uri}"
    return {"report": layout.report(run_uri), "MLflow": mlflow}


def _say(console: Console, lines: Mapping[str, str]) -> None:
    for what, said in lines.items():
        console.print(f"{what + ':':<9}{said}", soft_wrap=True, highlight=False, markup=False)


def _program(name: str) -> str:
    """How this shell can call a program of this environment."""
    path = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(path):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def table(summary: Summary, *, graded_by: str) -> Table:
    """Figures of the dev set, with 95 % intervals; those of the round beside the policy that came out of it."""
    figures = ("accuracy %", "score", "unscored", "words a\nresponse")
    judged = ("reward\naccuracy", "order\nconsist.", "rows\ndropped")
    made = _empty_table(f"{summary.name}: {summary.dev} set, {graded_by}", "policy", *figures, *judged)
    for policy in summary.policies:
        made.add_row(policy.name, *_cells(policy, summary.dev))
    return made


def set_table(summary: Summary, recipe: Recipe, *, graded_by: str) -> Table:
    """A benchmark's figures by set, in the recipe's order, with 95 % intervals."""
    figures = ("protocol", "questions", "accuracy %", "score", "unscored", "words an\nanswer")
    made = _empty_table(f"{summary.name}, {graded_by}", "set", *figures)
    (system,) = summary.policies
    for name in recipe.data.sets:
        graded = system.evaluation.get(name, {})
        made.add_row(name, recipe.protocol(name), _figure(graded, "rows", digits=0), *_graded(graded))
    return made


def _empty_table(title: str, first: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    made.add_column(first, no_wrap=True)
    for name in columns:
        made.add_column(name, justify="right", no_wrap=True)
    return made


def _graded(metrics: Mapping[str, float]) -> tuple[str, ...]:
    """Accuracy, score, unscored and words."""
    return (
        _interval(metrics, "accuracy", scale=100, digits=1),
        _figure(metrics, "score", digits=2),
        _figure(metrics, "unscored", digits=0),
        _figure(metrics, "words", digits=1),
    )


def _cells(policy: PolicySummary, dev: str) -> tuple[str, ...]:
    return (
        *_graded(policy.evaluation.get(dev, {})),
        _figure(policy.training, "reward_accuracy", digits=2),
        _figure(policy.preferences, "order_consistency", digits=2),
        f"{sum(policy.dropped.values())} of {int(policy.preferences['rows'])}"
        if "rows" in policy.preferences
        else NOTHING,
    )


def _figure(metrics: Mapping[str, float], key: str, *, digits: int) -> str:
    return f"{metrics[key]:.{digits}f}" if key in metrics else NOTHING


def _interval(metrics: Mapping[str, float], key: str, *, scale: float, digits: int) -> str:
    if key not in metrics:
        return NOTHING
    value, low, high = (metrics[name] * scale for name in (key, f"{key}_low", f"{key}_high"))
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
