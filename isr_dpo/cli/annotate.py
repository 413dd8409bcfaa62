"""`isr-dpo annotate`: choices between a round's two answers, by a person or by an oracle."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import re

from isr_dpo.cli.options import Commands, count

ROWS = 100


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
    annotate.set_defaults(run=_annotate)


def _annotate(options: argparse.Namespace) -> None:
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
