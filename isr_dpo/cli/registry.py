"""`isr-dpo promote`, `isr-dpo rollback`: the registry's aliases."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from isr_dpo import config
from isr_dpo.cli.options import Commands

if TYPE_CHECKING:
    from isr_dpo.registry import Promotion


def add(commands: Commands) -> None:
    promote = commands.add_parser("promote", help="make a registered version the champion")
    promote.add_argument("--version", help="a version's number (default: the alias challenger)")
    promote.add_argument("--force", action="store_true", help="even if worse than the champion, or not comparable")
    promote.set_defaults(run=_promote)
    rollback = commands.add_parser("rollback", help="make the previous champion the champion again")
    rollback.set_defaults(run=_rollback)
    for command in (promote, rollback):
        command.add_argument("name", help="the registered model")
        command.add_argument("--tracking-uri", default=config.Tracking().uri, metavar="URI", help="(%(default)s)")
        command.add_argument("--dry-run", action="store_true", help="say what would happen")


def _promote(options: argparse.Namespace) -> None:
    from isr_dpo import registry

    print(
        _told(
            registry.promote(
                options.name,
                uri=options.tracking_uri,
                version=options.version,
                force=options.force,
                dry_run=options.dry_run,
            )
        )
    )


def _rollback(options: argparse.Namespace) -> None:
    from isr_dpo import registry

    print(_told(registry.rollback(options.name, uri=options.tracking_uri, dry_run=options.dry_run)))


def _told(promotion: Promotion) -> str:
    verb = "is now" if promotion.done else "would be"
    before = f", after version {promotion.previous}" if promotion.previous else ""
    return f"{promotion.name}: version {promotion.champion} {verb} the champion{before} ({promotion.reason})"
