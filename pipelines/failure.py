"""After a failure: why, in a few lines, and the report rebuilt from what the run has made."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError
from isr_dpo.stores import Missing, read_bytes, write_bytes

TAIL_LINES = 15


def explain(console: Console, recipe: Recipe, run_uri: str, *, run_id: str, log: Path) -> int:
    """Says why the run stopped and rebuilds its report with that. Returns the exit code that fits the failure."""
    from isr_dpo import steps

    try:
        failed = _recorded(run_uri) or _record_silent_end(run_uri, run_id, log)
        page = steps.rebuild_report(run_uri, recipe)
    except IsrDpoError as error:  # the store that fails the run cannot take a report either
        failed = {"message": f"{_silent_end(log)}\n{error}", "exit_code": error.exit_code}
        page = None
    _say(console, f"\nfailed: {failed['message']}", style="red")
    if page is not None:
        _say(console, f"report:  {page}")
    _say(console, f"log:     {log}\nThe same command goes on from what is finished.")
    return int(failed["exit_code"])


def _recorded(run_uri: str) -> dict[str, Any]:
    """What the failing step left; empty where it left nothing, because it was killed or never began."""
    try:
        return dict(json.loads(read_bytes(layout.failure(run_uri))))
    except Missing:
        return {}


def _record_silent_end(run_uri: str, run_id: str, log: Path) -> dict[str, Any]:
    """Records in the step's place that it is gone, so that the report shows it."""
    failed = {
        "step": "pipeline",
        "index": 0,
        "run_id": run_id,
        "error": "Killed",
        "message": _silent_end(log),
        "exit_code": IsrDpoError.exit_code,
        "retry": True,
    }
    write_bytes(layout.failure(run_uri), (json.dumps(failed, indent=1) + "\n").encode())
    return failed


def _silent_end(log: Path) -> str:
    tail = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    return "\n".join(["a step ended without saying why (killed, or out of memory?); the log's last lines:", *tail])


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
