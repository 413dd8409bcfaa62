"""`isr-dpo report`: the page, from the run's files."""

from __future__ import annotations

import argparse
import json

from isr_dpo import config, layout
from isr_dpo.cli.options import Commands
from isr_dpo.errors import DataError


def add(commands: Commands) -> None:
    report = commands.add_parser("report", help="write a run's report page again, from its files alone")
    report.add_argument("run_uri", metavar="RUN", help="the run's URI")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from isr_dpo import report
    from isr_dpo.stores import Missing, read_bytes

    try:
        tree = json.loads(read_bytes(layout.run_file(options.run_uri)))
    except Missing:
        raise DataError(f"{options.run_uri}: no run.json there, so no run") from None
    print(report.build(options.run_uri, config.parse(json.dumps(tree["recipe"]))))
