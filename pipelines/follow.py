"""Follows a submitted run to its end: a line a task that starts or ends, then what came of it."""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tenacity
import yaml
from rich.console import Console

from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, KeyRefused, OutsideError
from pipelines import closing, failure
from pipelines.kfp_api import KfpApi

POLL_SECONDS = 10.0
PATIENCE_SECONDS = 900.0
"""How long KFP may be away before it is no longer waited for."""
ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
CANCELLED = 130
_SHOWN = {"RUNNING": "started", "SUCCEEDED": "done", "FAILED": "failed", "CANCELED": "cancelled"}


def follow(console: Console, api: KfpApi, run_id: str, package: Path, recipe: Recipe, run_uri: str) -> int:
    """Shows progress until the run has ended. Returns 0, or the exit code of what failed; the report is then rebuilt
    with the failure. Giving up on following (an expired token, Ctrl-C) does not touch the run.

    Raises:
        KeyRefused, OutsideError: KFP can no longer be asked.
    """
    progress = _Progress(console, titles(package))
    try:
        run = _until_ended(api, run_id, progress)
    except OutsideError as error:
        renewed = "; after a new login, " if isinstance(error, KeyRefused) else ". It goes on: "
        error.args = (f"{error}\nThe run is no longer followed{renewed}the same command follows it again",)
        raise
    if run.state == "SUCCEEDED":
        with _told(console):
            closing.show(console, run_uri, recipe)
        return 0
    link = api.link(run_id)
    if run.state == "CANCELED":
        console.print(f"cancelled: {link}\nThe same command goes on from what is finished.", soft_wrap=True)
        return CANCELLED
    return failure.explain_run(console, recipe, run_uri, run_id=run_id, said=_said(run, progress), link=link)


def titles(package: Path) -> dict[str, str]:
    """The titles of the package's tasks by the names that KFP has for them."""
    spec = next(iter(yaml.safe_load_all(package.read_text(encoding="utf-8"))))
    return {name: str(task["taskInfo"]["name"]) for name, task in spec["root"]["dag"]["tasks"].items()}


class _Progress:
    """What was last seen of each task."""

    def __init__(self, console: Console, named: Mapping[str, str]) -> None:
        self._console, self._named = console, named
        self._seen: dict[str, str] = {}
        self._started = time.monotonic()

    def show(self, run: Any) -> None:
        """A line a task whose state has changed. KFP's own drivers, and the shares of a loop, have no title."""
        details = run.run_details.task_details if run.run_details else None
        for task in details or []:
            shown = self._named.get(task.display_name or "")  # KFP's own drivers have other names
            if shown is None or task.state == self._seen.get(shown):
                continue
            self._seen[shown] = task.state
            if task.state in _SHOWN:
                minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
                text = f"{minutes:02d}:{seconds:02d} {shown}: {_SHOWN[task.state]}"
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    @property
    def failed(self) -> list[str]:
        """The titles of failed tasks."""
        return [shown for shown, state in self._seen.items() if state == "FAILED"]


def _until_ended(api: KfpApi, run_id: str, progress: _Progress) -> Any:
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, OutsideError) and error.retry),
        wait=tenacity.wait_fixed(POLL_SECONDS),
        stop=tenacity.stop_after_delay(PATIENCE_SECONDS),
        reraise=True,
    )
    while True:
        run = retrying(api.run, run_id)
        progress.show(run)
        if run.state in ENDED:
            return run
        time.sleep(POLL_SECONDS)


def _said(run: Any, progress: _Progress) -> str:
    tasks = ", ".join(progress.failed) or "no task of ours"
    why = f": {run.error.message}" if run.error and run.error.message else ""
    unsaid = "No step has said why (evicted, out of memory, no node?)"
    return f"Kubeflow Pipelines says {run.state}{why}; failed: {tasks}. {unsaid}"


@contextlib.contextmanager
def _told(console: Console) -> Any:
    """A store that cannot be read from here is no failure of a run that has succeeded."""
    try:
        yield
    except IsrDpoError as error:
        console.print(f"succeeded; its figures cannot be shown here: {error}", markup=False, soft_wrap=True)
