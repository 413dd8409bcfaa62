"""The report: one self-contained HTML page over one run or several, rebuilt from their files alone.

| module | what |
|---|---|
| `data` | all that the page shows, gathered; `reading` passes over what is missing and names what is damaged |
| `summary` | a run's figures, which the closing table in a terminal shows as well |
| `headline`, `differences`, `health`, `paper` | tables, as data (`tables`) |
| `figures/` | drawings (`drawing`) |
| `sections` | which of them stand where |
| `samples`, `flips`, `pictures` | what there is to look at; `embedded` hands it to the page's script |
| `page/` | templates, style and script |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.stores import Missing, read_bytes, write_bytes

if TYPE_CHECKING:
    from isr_dpo.analyse.runs import Run
    from isr_dpo.report.data import Page
    from isr_dpo.report.failure import Failure

_MADE = re.compile(rb'(<time id="made">)[^<]*')


def build(run_uri: str, recipe: Recipe, *, failure: Failure | None = None) -> str:
    """Writes the page of the run so far to <run>/report/index.html and returns its URI.

    `failure` stands at the top of the page; without it the run's failed.json does, where there is one. Missing outputs
    are shown as pending, damaged ones named. A page that stands and says the same stays as it is.

    Raises:
        OutsideError: the store stays away.
    """
    from isr_dpo.analyse.runs import Run

    return build_page([Run(run_uri, recipe, recipe.name)], layout.report(run_uri), failure=failure)


def build_page(runs: Sequence[Run], uri: str, *, failure: Failure | None = None) -> str:
    """Writes a page over `runs`, side by side, to `uri`, a path or s3://, and returns that. Raises OutsideError."""
    from isr_dpo.report.data import gather
    from isr_dpo.report.reading import KeptRun

    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    kept = [KeptRun(run.uri, run.recipe, run.name) for run in runs]
    content = render(gather(kept, made=made, failure=failure)).encode()
    if _undated(standing(uri)) != _undated(content):
        if "://" not in uri:
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(uri, content)
    return uri


def render(page: Page) -> str:
    """The page as HTML; equal pages give equal text. Every text of the runs is escaped."""
    from isr_dpo.report.rendering import html

    return html(page)


def standing(uri: str) -> bytes:
    """The page at `uri`; empty where there is none. Raises OutsideError."""
    try:
        return read_bytes(uri)
    except Missing:
        return b""


def _undated(page: bytes) -> bytes:
    return _MADE.sub(rb"\1", page)
