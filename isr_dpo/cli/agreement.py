"""`isr-dpo analyse agreement`: the judge's choices beside those of people or of an oracle (Table 4)."""

from __future__ import annotations

import argparse
import hashlib
from typing import TYPE_CHECKING

from isr_dpo.cli.options import Commands, count
from isr_dpo.errors import DataError

if TYPE_CHECKING:
    from isr_dpo.analyse.agreement import RunAgreement, SamePairs
    from isr_dpo.analyse.runs import Run


def add(actions: Commands) -> None:
    action = actions.add_parser(
        "agreement",
        help="the judge's choices beside those of people or of an oracle (Table 4)",
        description="The share of a round's labelled pairs on which the judge chose as the people did (or an oracle), "
        "of a run and of another context design's. `isr-dpo annotate` makes the labels.",
    )
    action.add_argument("run_uri", metavar="RUN", help="the run's URI")
    action.add_argument("--round", type=count, required=True, metavar="T", help="a judged round with labels")
    action.add_argument("--against", metavar="RUN2", help="a run of another context design, its round labelled too")
    action.add_argument(
        "--engine",
        action="store_true",
        help="also let RUN's policy judge the labelled pairs again, with and without context (RUN's descriptions, or "
        "RUN2's where it has none), and with another video's",
    )
    action.add_argument("--out", metavar="URI", help="of the JSON (default: in RUN/analysis/)")
    action.set_defaults(run=_agreement)


def _agreement(options: argparse.Namespace) -> None:
    from isr_dpo import layout
    from isr_dpo.analyse import agreement, tables
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.cli import agreement_text
    from isr_dpo.cli.analyse import show

    runs = open_runs([options.run_uri, *([options.against] if options.against else [])])
    found = [_of_run(run, options.round) for run in runs]
    made = agreement.Agreement(
        round=options.round,
        runs=tuple(found),
        difference=agreement.difference(found[0], found[1]) if len(found) == 2 else None,
        same_pairs=_same_pairs(runs, found[0]) if options.engine else None,
        reported=tables.agreement(),
    )
    name = f"agreement-round-{options.round:02d}"
    show(made, agreement_text.agreement(made), out=options.out or layout.analysis(runs[0].uri, name))


def _of_run(run: Run, index: int) -> RunAgreement:
    """Raises DataError: the round is not judged, or nobody labelled it."""
    from isr_dpo import layout
    from isr_dpo.analyse.agreement import run_agreement
    from isr_dpo.annotate.choices import read_all
    from isr_dpo.annotate.session import read_judged
    from isr_dpo.stores import read_bytes

    judged, choices = read_judged(run.uri, index), read_all(run.uri, index)
    files = {name: read_bytes(layout.choices(run.uri, index, name)) for name in choices}
    found = run_agreement(
        judged,
        choices,
        run=run.name,
        uri=run.uri,
        round_index=index,
        context=run.context,
        made_from={
            "preferences": run.digest(layout.round_output(run.uri, index, "preferences")),
            **{f"choices/{name}": hashlib.sha256(content).hexdigest() for name, content in files.items()},
        },
    )
    if not found.labels:
        others = f" ({found.other_rows} choices there are between other answers)" if found.other_rows else ""
        raise DataError(
            f"{run.uri}: nobody has labelled round {index}{others}; isr-dpo annotate {run.uri} --round {index}"
        )
    return found


def _same_pairs(runs: list[Run], found: RunAgreement) -> SamePairs:
    from isr_dpo.analyse.agreement import labels_of, same_pairs
    from isr_dpo.annotate.session import read_judged
    from isr_dpo.steps.rejudge import rejudge

    run = runs[0]
    contexts_from = next((one for one in runs if one.context != "none"), run)
    labels = labels_of(found, found.labels[0].by)
    rows = [row for row in read_judged(run.uri, found.round) if row.id in labels]
    again = rejudge(run, found.round, rows, contexts_from=contexts_from)
    return same_pairs(found, **again._asdict(), policy=found.round, contexts_of=contexts_from.name)
