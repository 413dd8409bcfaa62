"""Runs the loop on this machine, through `kfp.local`: the embedded default, with one process a step."""

import contextlib
import os
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from isr_dpo import layout, orphans
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.preflight import check_changes
from isr_dpo.stores import open_store
from isr_dpo.stores.lock import owner
from pipelines import closing, failure
from pipelines.relay import Relay
from pipelines.standing import is_complete, mark_complete

SCRATCH = Path("build/kfp")
"""What KFP passes between tasks, and the steps' logs: a folder a run, emptied when the run starts again."""


def run(recipe: Recipe, run_uri: str, *, run_id: str | None = None) -> int:
    """Runs `recipe` at `run_uri` to its end, going on from what stands there. Returns the process's exit code.

    Raises:
        RunBusy: another run owns `run_uri`.
        StaleOutput: `run_uri` holds finished work that another recipe has made; nothing is started then.
        CorruptOutput: of a run that stands complete, a file is missing or differs.
    """
    console = Console(file=sys.stdout)  # the stream itself: the name is redirected later
    if is_complete(run_uri, recipe):
        console.print(f"{run_uri}: complete, every output verified; nothing to do", highlight=False)
        closing.show(console, run_uri, recipe)
        return 0
    check_changes(recipe, run_uri)
    run_id = run_id or uuid.uuid4().hex[:12]
    scratch = SCRATCH / f"{recipe.name}-{canonical_digest(run_uri)[:8]}"
    with owner(run_uri, run_id):
        open_store(run_uri).delete(layout.failure(run_uri))
        log = _fresh(scratch) / "steps.log"
        console.print(f"{recipe.name} at {run_uri}, log in {log}", highlight=False, soft_wrap=True)
        started = time.monotonic()
        finished = _through_kfp(recipe, run_uri, run_id, scratch.resolve(), Relay(log, console))
        if not finished:
            return failure.explain(console, recipe, run_uri, run_id=run_id, log=log)
        mark_complete(run_uri, recipe)
        console.print(f"done in {time.monotonic() - started:.0f} s\n", highlight=False)
        closing.show(console, run_uri, recipe)
        return 0


def _through_kfp(recipe: Recipe, run_uri: str, run_id: str, scratch: Path, relay: Relay) -> bool:
    """Whether all tasks succeeded."""
    from kfp import local

    from pipelines.isr_dpo import build

    runner = local.SubprocessRunner(use_venv=False)
    settings = {"pipeline_root": str(scratch / "tasks"), "workspace_root": str(scratch / "workspace")}
    local.init(runner, raise_on_error=True, **settings)
    pipeline = build(recipe, run_id=run_id, in_order=True)
    with _environment(scratch), warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(relay):
        try:
            pipeline(run_uri=run_uri)
        except RuntimeError:  # all that KFP raises for a task that failed; the step has said why
            return False
    return True


def _fresh(scratch: Path) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "temporary").mkdir(parents=True)
    return scratch


@contextlib.contextmanager
def _environment(scratch: Path) -> Iterator[None]:
    """What the steps' processes inherit: whom to die with, output as it comes, and where KFP's launcher script and the
    steps put temporary files, which a killed one leaves behind."""
    ours = {
        orphans.DRIVER_PID: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(scratch / "temporary"),
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
