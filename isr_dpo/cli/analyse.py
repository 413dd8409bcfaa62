"""`isr-dpo analyse`: the paper's analyses, over a run or several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from isr_dpo.cli import agreement
from isr_dpo.cli.options import Commands, count
from isr_dpo.cli.systems import SYSTEM, known_policy, two_systems
from isr_dpo.errors import DataError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from isr_dpo.analyse.compared import System
    from isr_dpo.analyse.runs import Run
    from isr_dpo.evaluate import Grader

NUMBERS = (1, 2, 3, 5)
FILE_COLUMNS = 200
"""Width of tables that go to a file or a pipe."""


def add(commands: Commands) -> None:
    analyse = commands.add_parser(
        "analyse",
        help="the paper's figures and tables, from runs",
        description="The paper's analyses. What a grader was asked for is written to RUN/analysis/, where the report "
        "finds it; the others are cheap, and the report makes them itself.",
    )
    actions = analyse.add_subparsers(title="analyses", metavar="ANALYSIS", required=True)
    _add_cheap(actions)
    _add_graded(actions)
    agreement.add(actions)


def _add_cheap(actions: Commands) -> None:
    lengths = _action(actions, "lengths", "words of chosen responses and of answers (Figures 4, 5)", _lengths)
    designs = _action(actions, "designs", "context designs side by side (Table 5)", _designs)
    designs.add_argument("--policy", type=count, metavar="P", help="(default: the latest that all runs have graded)")
    over = _action(actions, "trajectories", "texts about some videos over the rounds (Figures 7, 8)", _trajectories)
    over.add_argument("--set", metavar="SET", help="evaluation set of the answers (default: dev)")
    over.add_argument("--video", action="append", default=[], metavar="VIDEO", help="may be given several times")
    over.add_argument("--count", type=_positive, default=3, metavar="N", help="without --video: how many (%(default)s)")
    over.add_argument("--seed", type=count, default=0, metavar="S", help="of that draw (%(default)s)")
    tables = _action(actions, "tables", "the paper's tables, reported figures beside ours", _tables)
    tables.add_argument("--table", type=int, choices=NUMBERS, help="(default: all of them)")
    for action in (lengths, designs, over, tables):
        least = "*" if action is tables else "+"
        action.add_argument("run_uris", metavar="RUN", nargs=least, help="a run's URI")
        action.add_argument("--out", metavar="URI", help="also write the result there, as JSON")


def _add_graded(actions: Commands) -> None:
    win = _action(actions, "win-rate", "two systems' answers against the ground truth (Figure 6)", _win_rate)
    win.add_argument("first", metavar="RUN_A[:policy]", help=SYSTEM.format(done="answered"))
    win.add_argument("second", metavar="RUN_B[:policy]", help="the same; the recipe of RUN_A names the grader")
    win.add_argument("--set", action="append", default=[], metavar="SET", help="(default: all that both have answered)")
    claims = _action(actions, "claims", "what answers claim and no caption supports (Figure 2)", _claims)
    claims.add_argument("run_uri", metavar="RUN", help="the run's URI; its recipe names the grader")
    claims.add_argument("--set", metavar="SET", help="evaluation set (default: dev)")
    claims.add_argument("--policies", type=_numbers, metavar="P,P", help="(default: all that have answered the set)")
    for action in (win, claims):
        action.add_argument("--limit", type=_positive, metavar="N", help="questions drawn of a set (default: all)")
        action.add_argument("--seed", type=count, default=0, metavar="S", help="of that draw (%(default)s)")
        action.add_argument("--grader", choices=("rules", "openai"), help="(default: the recipe's evaluate.grader)")
        action.add_argument("--model", metavar="NAME", help="of an openai grader")
        action.add_argument("--base-url", metavar="URL", help="of an OpenAI-compatible server")
        action.add_argument("--evaluate", action="append", default=[], metavar="KEY=VALUE", help="any key of evaluate")
        action.add_argument("--out", metavar="URI", help="of the JSON (default: in RUN/analysis/)")


def _action(
    actions: Commands, name: str, text: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    action.set_defaults(run=run)
    return action


def _positive(text: str) -> int:
    """A whole number from 1 on."""
    number = count(text)
    if number == 0:
        raise argparse.ArgumentTypeError("0 is none at all")
    return number


def _numbers(text: str) -> list[int]:
    """`1,5,9`."""
    return [count(part) for part in text.split(",")]


def _lengths(options: argparse.Namespace) -> None:
    from isr_dpo.analyse.lengths import lengths
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.cli import analyse_text

    found = [lengths(run) for run in open_runs(options.run_uris)]
    show(found, analyse_text.lengths(found), out=options.out)


def _designs(options: argparse.Namespace) -> None:
    from isr_dpo.analyse.designs import designs
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.cli import analyse_text

    found = designs(open_runs(options.run_uris), policy=options.policy)
    show(found, analyse_text.designs(found), out=options.out)


def _trajectories(options: argparse.Namespace) -> None:
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.analyse.trajectories import trajectories
    from isr_dpo.cli import analyse_text

    chosen = {"name": options.set, "videos": options.video, "count": options.count, "seed": options.seed}
    found = [trajectories(run, **chosen) for run in open_runs(options.run_uris)]
    show(found, [part for one in found for part in analyse_text.trajectories(one)], out=options.out)


def _tables(options: argparse.Namespace) -> None:
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.analyse.tables import table
    from isr_dpo.cli import analyse_text

    runs = open_runs(options.run_uris)
    found = [table(number, runs) for number in ([options.table] if options.table else NUMBERS)]
    show(found, [part for one in found for part in analyse_text.table(one)], out=options.out)


def _win_rate(options: argparse.Namespace) -> None:
    from isr_dpo import layout
    from isr_dpo.analyse.win_rate import win_rate
    from isr_dpo.cli import analyse_text
    from isr_dpo.progress import Progress

    first, second = two_systems(options.first, options.second, has=_answered, done="answered")
    sets = list(dict.fromkeys(options.set)) or _answered_by_both(first, second)
    rows = sum(_rows(first.run, name, options.limit) for name in sets)
    found = win_rate(
        first,
        second,
        _grader(options, first.run),
        sets=sets,
        limit=options.limit,
        seed=options.seed,
        progress=Progress("win-rate", 2 * rows, "comparisons"),
    )
    name = f"win-rate-{first.policy:02d}-{second.run.folder}-{second.policy:02d}"
    show(found, analyse_text.win_rate(found), out=options.out or layout.analysis(first.run.uri, name))


def _claims(options: argparse.Namespace) -> None:
    from isr_dpo import layout
    from isr_dpo.analyse.claims import claims
    from isr_dpo.analyse.runs import open_run
    from isr_dpo.cli import analyse_text
    from isr_dpo.progress import Progress

    run = open_run(options.run_uri)
    name = options.set or run.recipe.leading_set
    rows = _rows(run, name, options.limit)
    policies = [known_policy(run, policy) for policy in dict.fromkeys(options.policies or run.answered(name))]
    if not policies:
        raise DataError(f"{run.uri}: no policy has answered the set {name!r} yet")
    found = claims(
        run,
        _grader(options, run),
        name=name,
        policies=policies,
        limit=options.limit,
        seed=options.seed,
        progress=Progress("claims", rows * len(policies), "answers"),
    )
    show(found, analyse_text.claims(found), out=options.out or layout.analysis(run.uri, f"claims-{name}"))


def _rows(run: Run, name: str, limit: int | None) -> int:
    rows = len(run.test_rows(name))
    return rows if limit is None else min(rows, limit)


def _answered(run: Run, policy: int) -> bool:
    return any(policy in run.answered(name) for name in run.recipe.sets_at(policy))


def _answered_by_both(first: System, second: System) -> list[str]:
    shared = sorted(first.run.recipe.data.sets.keys() & second.run.recipe.data.sets.keys())
    sets = [name for name in shared if all(side.policy in side.run.answered(name) for side in (first, second))]
    if not sets:
        raise DataError(
            f"{first.label} and {second.label} have answered no set in common; `isr-dpo answer` makes answers"
        )
    return sets


def _grader(options: argparse.Namespace, run: Run) -> Grader:
    """The grader of the run's recipe, with what the command line changes. Raises RecipeError."""
    from isr_dpo import config
    from isr_dpo.evaluate import open_grader

    given = {key: getattr(options, key) for key in ("grader", "model", "base_url")}
    changes = [f"evaluate.{key}={value}" for key, value in given.items() if value is not None]
    changes += [f"evaluate.{change}" for change in options.evaluate]
    recipe = config.parse(run.recipe.canonical(), where="analyse", changes=changes)
    return open_grader(recipe.evaluate, run_uri=run.uri)


def show(found: Any, parts: Sequence[RenderableType], *, out: str | None) -> None:
    from rich.console import Console

    from isr_dpo.analyse import form

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    for part in parts:
        console.print(part)
    if out is not None:
        form.save(found, out)
        console.print(f"written: {out}", markup=False, soft_wrap=True)
