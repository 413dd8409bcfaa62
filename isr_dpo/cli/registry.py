"""`isr-dpo promote`, `isr-dpo rollback`: the registry's champion."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import config
from isr_dpo.cli.options import Commands, count

if TYPE_CHECKING:
    from isr_dpo.registry import Promotion


def add(commands: Commands) -> None:
    promote = commands.add_parser(
        "promote",
        help="make a registered version the champion, if it answers better",
        description="Compares a version with the champion on the version's dev questions, from the answers and grades "
        "that their runs hold, by the gate of the version's recipe (its section `promote`). Where grades are missing "
        "or come from different graders, it prints the evaluations that make the two comparable.",
    )
    promote.add_argument("--version", help="a version's number (default: the alias challenger)")
    promote.add_argument(
        "--force", action="store_true", help="although the gate refuses it, or nothing compares the two"
    )
    promote.add_argument(
        "--flips", type=count, default=6, metavar="N", help="answers that changed sides to show (default: %(default)s)"
    )
    promote.add_argument("--json", type=Path, metavar="FILE", help="write figures and all flips there")
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="make the previous champion the champion again")
    rollback.set_defaults(run=_rollback)
    for command in (promote, rollback):
        command.add_argument("name", help="the registered model")
        command.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="(%(default)s)")
        command.add_argument("--dry-run", action="store_true", help="change nothing, say what would happen")


def _promote(options: argparse.Namespace) -> None:
    from isr_dpo import registry
    from isr_dpo.cli import promotion_text

    decision = registry.decide(options.name, uri=options.tracking_uri, version=options.version)
    promotion_text.show(decision, flips=options.flips)
    if options.json is not None:
        options.json.write_text(promotion_text.as_json(decision), encoding="utf-8")
    made = registry.promote(decision, uri=options.tracking_uri, force=options.force, dry_run=options.dry_run)
    print(_told(made))


def _rollback(options: argparse.Namespace) -> None:
    from isr_dpo import registry

    print(_told(registry.rollback(options.name, uri=options.tracking_uri, dry_run=options.dry_run)))


def _told(promotion: Promotion) -> str:
    verb = "is now" if promotion.done else "would be"
    before = f", after version {promotion.previous}" if promotion.previous else ""
    return f"{promotion.name}: version {promotion.champion} {verb} the champion{before} ({promotion.reason})"
