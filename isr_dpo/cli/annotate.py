"""`isr-dpo annotate`: choices between a round's two answers, by a person or by an oracle."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import re
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands, count
from isr_dpo.errors import RecipeError

if TYPE_CHECKING:
    from isr_dpo.analyse.runs import Run
    from isr_dpo.evaluate import Grader

ROWS = 100
RECIPE = "recipe"


def add(commands: Commands) -> None:
    annotate = commands.add_parser(
        "annotate",
        help="label which of two answers is better, blind, on a local page",
        description="Serve a page on this machine on which a person labels which of a round's two answers is better, "
        "without seeing what the judge read or chose. Stop with Ctrl-C; the same command goes on.",
    )
    annotate.add_argument("run_uri", metavar="RUN", help="the run's URI")
    annotate.add_argument("--round", type=count, required=True, metavar="T", help="a judged round")
    annotate.add_argument("--rows", type=count, default=ROWS, metavar="N", help="how many rows (default %(default)s)")
    annotate.add_argument("--seed", type=count, default=0, metavar="S", help="of the draw; the same for all annotators")
    annotate.add_argument("--annotator", metavar="NAME", help="who labels (default: the user's name)")
    annotate.add_argument("--port", type=count, metavar="P", help="of the page; 0: any that is free (default 8410)")
    annotate.add_argument(
        "--oracle",
        nargs="?",
        const=RECIPE,
        choices=("rules", "openai", RECIPE),
        help="no page: let the grader choose by the ground truth (without a value: the grader of RUN's recipe)",
    )
    annotate.add_argument(
        "--truth",
        metavar="TRAIN.jsonl",
        help="of an oracle: the training rows with their answers, a path or s3:// URI",
    )
    annotate.add_argument(
        "--evaluate", action="append", default=[], metavar="KEY=VALUE", help="of an oracle: any key of evaluate"
    )
    annotate.set_defaults(run=_annotate)


def _annotate(options: argparse.Namespace) -> None:
    _check(options)
    if options.oracle:
        _ask_oracle(options)
    else:
        _serve(options)


def _check(options: argparse.Namespace) -> None:
    if options.oracle and not options.truth:
        raise RecipeError("--oracle needs --truth TRAIN.jsonl: a run does not keep its rows' ground truth")
    meant_for_people = {"--annotator": options.annotator is not None, "--port": options.port is not None}
    meant_for_oracles = {"--truth": options.truth is not None, "--evaluate": bool(options.evaluate)}
    if options.rows == 0:
        raise RecipeError("--rows 0: accepted: 1 or more")
    wrong = [name for name, given in (meant_for_people if options.oracle else meant_for_oracles).items() if given]
    if wrong:
        raise RecipeError(f"{wrong[0]}: {'not with' if options.oracle else 'only with'} --oracle")


def _ask_oracle(options: argparse.Namespace) -> None:
    from isr_dpo import layout
    from isr_dpo.analyse import oracle
    from isr_dpo.analyse.runs import open_run
    from isr_dpo.annotate.choices import ChoiceLog
    from isr_dpo.annotate.session import read_judged
    from isr_dpo.annotate.sheet import differs
    from isr_dpo.progress import Progress

    run = open_run(options.run_uri)
    judged, truths = read_judged(run.uri, options.round), oracle.read_truths(options.truth)
    grader = _grader(run, options.oracle, options.evaluate)
    rows = min(options.rows, sum(map(differs, judged)))
    told = oracle.choose(
        judged,
        truths,
        grader,
        round_index=options.round,
        rows=options.rows,
        seed=options.seed,
        progress=Progress("oracle", 2 * rows, "comparisons"),
    )
    log = ChoiceLog(layout.choices(run.uri, options.round, oracle.name_of(grader)))
    log.add(*told.choices)
    preferred = sum(choice.choice is not None for choice in told.choices)
    print(f"{preferred} of {len(told.choices)} rows decided by {oracle.name_of(grader)}, kept in {log.uri}")
    if told.bill.bought:
        print(f"{told.bill.bought} replies bought now for ${told.bill.cost_usd:.4f}")


def _grader(run: Run, oracle: str, changes: list[str]) -> Grader:
    """The grader of the run's recipe with what the command line changes. Raises RecipeError."""
    from isr_dpo import config
    from isr_dpo.evaluate import open_grader

    asked = [] if oracle == RECIPE else [f"evaluate.grader={oracle}"]
    asked += [f"evaluate.{change}" for change in changes]
    recipe = config.parse(run.recipe.canonical(), where="annotate", changes=asked)
    return open_grader(recipe.evaluate, run_uri=run.uri)


def _serve(options: argparse.Namespace) -> None:
    from isr_dpo.annotate import server
    from isr_dpo.annotate.choices import checked_name
    from isr_dpo.annotate.session import open_session

    name = checked_name(options.annotator or _user())
    session = open_session(
        options.run_uri, round_index=options.round, rows=options.rows, seed=options.seed, annotator=name
    )
    port = server.PORT if options.port is None else options.port
    with server.Server(session, port=port) as serving:
        done = len(session.standing())
        print(f"{len(session.items)} rows of round {options.round}, {done} labelled by {name} so far", flush=True)
        print(f"open {serving.url}   (stop with Ctrl-C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            serving.serve_forever()
    left = sum(verdict is None for verdict in session.state()["labelled"])
    print(f"\n{len(session.items) - left} of {len(session.items)} rows labelled, kept in {session.log.uri}")


def _user() -> str:
    """The user's name as an annotator may be called."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have none
        name = ""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("._-") or "annotator"
