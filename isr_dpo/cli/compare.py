"""`isr-dpo compare`: two systems on the same questions."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands
from isr_dpo.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from isr_dpo.analyse.compared import Compared, System
    from isr_dpo.analyse.runs import Run
    from isr_dpo.evaluate.statistics import Difference

SYSTEM = "RUN, or RUN:policy such as runs/demo:3 (default: the newest graded policy)"
_SYSTEM = re.compile(r"(?P<run>.+?)(?::(?:policy-)?(?P<policy>[0-9]{1,2}))?")


def add(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="is one policy better than another? Paired on the same questions",
        description="The second system against the first on the questions that are scored in both: differences with "
        "95 % intervals and p-values by a bootstrap over videos, and the answers that flipped.",
    )
    compare.add_argument("first", metavar="RUN_A[:policy]", help=SYSTEM)
    compare.add_argument("second", metavar="RUN_B[:policy]", help="the same; of one run, too")
    compare.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="NAME", help="as often as needed (default: all)"
    )
    compare.add_argument("--flips", action="store_true", help="list the questions whose answers flipped")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from isr_dpo.analyse.compared import compared, graded_sets

    first, second = _systems(options.first, options.second)
    sets = options.sets or graded_sets(first, second)
    if not sets:
        raise DataError(f"{first.label} and {second.label} are graded on no set of one name")
    console = Console()
    for made in [compared(first, second, name) for name in sets]:
        console.print(_table(made))
        for line in _below(made, flips=options.flips):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print()


def _systems(*texts: str) -> tuple[System, System]:
    from isr_dpo.analyse.runs import open_run, open_runs

    named = [match.groupdict() for text in texts if (match := _SYSTEM.fullmatch(text)) is not None]
    uris = [each["run"].rstrip("/") for each in named]
    runs = [open_run(uris[0])] * 2 if uris[0] == uris[1] else open_runs(uris)
    a, b = (_system(run, each["policy"]) for run, each in zip(runs, named, strict=True))
    if a == b:
        raise DataError(f"{texts[0]} and {texts[1]} are the same policy; name others, such as {uris[0]}:1 {uris[1]}:2")
    return a, b


def _system(run: Run, policy: str | None) -> System:
    from isr_dpo.analyse.compared import System

    if policy is not None:
        if int(policy) not in run.policies:
            raise DataError(f"{run.uri}: no policy {policy}; it has {run.policies[0]} to {run.policies[-1]}")
        return System(run, int(policy))
    newest = (p for p in reversed(run.policies) if any(run.graded(p, name) for name in run.recipe.sets_at(p)))
    found = next(newest, None)
    if found is None:
        raise DataError(f"{run.uri}: no policy of it is graded yet")
    return System(run, found)


def _table(made: Compared) -> Table:
    from rich.table import Table

    who = f"{made.set}: {made.grader.words}"
    table = Table(title=who, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("")
    for name in (f"A: {made.systems[0]}", f"B: {made.systems[1]}", "B - A, 95 % interval", "p"):
        table.add_column(name, justify="right")
    found = made.comparison
    for name, values, difference, scale, digits in (
        ("accuracy %", found.accuracies, found.accuracy, 100, 1),
        ("score", found.scores, found.score, 1, 2),
    ):
        cells = (f"{scale * value:.{digits}f}" for value in values)
        table.add_row(name, *cells, _interval(difference, scale, digits), _p_value(difference.p_value))
    return table


def _below(made: Compared, *, flips: bool) -> list[str]:
    found = made.comparison
    right, wrong = found.flips.to_right, found.flips.to_wrong
    lines = [
        f"{found.rows} questions on {found.accuracy.clusters} videos are scored in both; without a score: "
        f"{found.left_out[0]} in A, {found.left_out[1]} in B",
        f"answers that flipped from A to B: {len(right)} to right, {len(wrong)} to wrong",
    ]
    if flips:
        lines += [f"to right: {' '.join(right)}", f"to wrong: {' '.join(wrong)}"]
    return lines


def _interval(difference: Difference, scale: float, digits: int) -> str:
    low, high = (f"{scale * bound:+.{digits}f}" for bound in (difference.low, difference.high))
    return f"{scale * difference.mean:+.{digits}f} [{low}, {high}]"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
