"""`isr-dpo compare`: two systems on the same questions."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands
from isr_dpo.cli.systems import SYSTEM, two_systems
from isr_dpo.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from isr_dpo.analyse.compared import Compared
    from isr_dpo.analyse.runs import Run
    from isr_dpo.evaluate.statistics import Difference


def add(commands: Commands) -> None:
    compare = commands.add_parser(
        "compare",
        help="is one policy better than another? Paired on the same questions",
        description="The second system against the first on the questions that are scored in both: differences with "
        "95 % intervals and p-values by a bootstrap over videos, and the answers that flipped.",
    )
    compare.add_argument("first", metavar="RUN_A[:policy]", help=SYSTEM.format(done="graded"))
    compare.add_argument("second", metavar="RUN_B[:policy]", help="the same; of one run, too")
    compare.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="NAME", help="as often as needed (default: all)"
    )
    compare.add_argument("--flips", action="store_true", help="list the questions whose answers flipped")
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from rich.console import Console

    from isr_dpo.analyse.compared import compared, graded_sets

    first, second = two_systems(options.first, options.second, has=_graded, done="graded")
    sets = options.sets or graded_sets(first, second)
    if not sets:
        raise DataError(f"{first.label} and {second.label} are graded on no set of one name")
    console = Console()
    for made in [compared(first, second, name) for name in sets]:
        console.print(_table(made))
        for line in _below(made, flips=options.flips):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        console.print()


def _graded(run: Run, policy: int) -> bool:
    return any(run.graded(policy, name) for name in run.recipe.sets_at(policy))


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
