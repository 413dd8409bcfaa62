"""`isr-dpo report`: the page, from the files of one run or of several."""

from __future__ import annotations

import argparse

from isr_dpo import layout
from isr_dpo.cli.options import Commands
from isr_dpo.stores import join


def add(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="write a report page again, from a run's files alone; of several runs one page, side by side",
        description="Writes <run>/report/index.html anew from the run's files, also of a run that failed or is half "
        "done. Several runs stand side by side on one page.",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="the run's URI; of several the first is the baseline")
    report.add_argument("--out", metavar="PAGE", help="another place for the page, a path or s3://")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from isr_dpo.analyse.runs import open_runs
    from isr_dpo.report import build_page

    runs = open_runs(options.runs)
    beside = layout.report(runs[0].uri) if len(runs) == 1 else join(runs[0].uri, "report", "runs.html")
    print(build_page(runs, options.out or beside))
