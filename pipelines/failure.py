"""After a failure: why, in a few lines, and the report rebuilt from what the run has made."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError
from isr_dpo.stores import Missing, read_bytes, write_bytes
from isr_dpo.titles import title

TAIL_LINES = 15


def explain(console: Console, recipe: Recipe, run_uri: str, *, run_id: str, log: Path) -> int:
    """Says why the run stopped and rebuilds its report with that. Returns the exit code that fits the failure."""
    return _explain(console, recipe, run_uri, otherwise=_silent_end(run_id, log), place=f"log:     {log}")


def explain_run(console: Console, recipe: Recipe, run_uri: str, *, run_id: str, said: str, link: str) -> int:
    """As `explain`, of a run in a cluster: `said` is what is known where no step has recorded why."""
    return _explain(console, recipe, run_uri, otherwise=_unrecorded(run_id, said), place=f"run:     {link}")


def _explain(console: Console, recipe: Recipe, run_uri: str, *, otherwise: dict[str, Any], place: str) -> int:
    failed = otherwise
    try:
        failed = _recorded(run_uri, otherwise=failed)
        report = _rebuilt(run_uri, recipe)
    except IsrDpoError as error:  # the store that fails a run cannot take a report either
        report = f"could not be rebuilt: {error}"
    where = title(failed["step"], failed["index"])
    _say(console, f"\nfailed in {where}: {failed['message']}", style="red")
    _say(console, f"report:  {report}\n{place}\nThe same command goes on from what is finished.")
    return int(failed["exit_code"])


def _recorded(run_uri: str, *, otherwise: dict[str, Any]) -> dict[str, Any]:
    """What the failing step of this attempt left. Where it left nothing, because it was killed or never began,
    `otherwise` is recorded in its place, so that the report shows it."""
    uri = layout.failure(run_uri)
    try:
        recorded = dict(json.loads(read_bytes(uri)))
    except Missing:
        recorded = {}
    if recorded.get("run_id") == otherwise["run_id"]:
        return recorded
    write_bytes(uri, (json.dumps(otherwise, indent=1) + "\n").encode())
    return otherwise


def _rebuilt(run_uri: str, recipe: Recipe) -> str:
    from isr_dpo import steps

    return steps.rebuild_report(run_uri, recipe) or "the run has not begun"


def _silent_end(run_id: str, log: Path) -> dict[str, Any]:
    tail = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    message = "\n".join(["a step ended without saying why (killed, or out of memory?); the log's last lines:", *tail])
    return _unrecorded(run_id, message)


def _unrecorded(run_id: str, message: str) -> dict[str, Any]:
    return {
        "step": "pipeline",
        "index": 0,
        "run_id": run_id,
        "error": "Killed",
        "message": message,
        "exit_code": IsrDpoError.exit_code,
        "retry": True,
    }


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
