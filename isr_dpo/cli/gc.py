"""`isr-dpo gc`: the large files of finished runs that nobody needs any more."""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from isr_dpo.cli.estimate import size
from isr_dpo.cli.options import Commands, count

if TYPE_CHECKING:
    from isr_dpo.gc import Plan


def add(commands: Commands) -> None:
    gc = commands.add_parser(
        "gc",
        help="remove a run's large files that nobody needs any more",
        description="Keeps the weights of the policies that have an alias in the registry (champion, previous, "
        "challenger), that are the best of their run, graded on all sets (evaluate.full_at), the newest, still to be "
        "read by their run, or the start of another; the newest masters and checkpoints; and all rows, grades, "
        "manifests and pages. Refuses a run that is alive, and deletes nothing where the registry or another run "
        "cannot be asked.",
    )
    gc.add_argument("runs", metavar="RUN", nargs="+", help="the run's URI")
    gc.add_argument("--dry-run", action="store_true", help="say what would go, change nothing")
    gc.add_argument("--keep", type=count, nargs="+", default=[], metavar="N", help="policies that stay in any case")
    gc.add_argument("--tracking-uri", metavar="URI", help="of MLflow (default: the run's recipe's)")
    gc.set_defaults(run=_gc)


def _gc(options: argparse.Namespace) -> None:
    from isr_dpo import gc
    from isr_dpo.gc.kept import read_registry
    from isr_dpo.mlflow_client import tracking_uri
    from isr_dpo.record import recipe_of
    from isr_dpo.steps import new_run_id

    for run in (uri.rstrip("/") for uri in options.runs):
        registry = read_registry(options.tracking_uri or tracking_uri(recipe_of(run)))
        if options.dry_run:
            made = gc.plan(run, registry=registry, keep=options.keep)
        else:
            made = gc.collect(run, registry=registry, keep=options.keep, run_id=f"gc-{new_run_id()}")
        print(text(made, done=not options.dry_run))


def text(made: Plan, *, done: bool) -> str:
    """The plan as a table: what goes, by reason, and who keeps which policy."""
    lines = [f"{made.run_uri}: {size(made.size)} {'removed' if done else 'would be removed'}"]
    counted = Counter(removal.reason for removal in made.removals)
    sizes: dict[str, int] = defaultdict(int)
    for removal in made.removals:
        sizes[removal.reason] += removal.size
    lines += [f"  {reason:30} {counted[reason]:5}  {size(sizes[reason]):>8}" for reason in counted]
    lines += [f"  kept: policy-{index:02d} ({', '.join(why)})" for index, why in made.kept.items()]
    return "\n".join(lines)
