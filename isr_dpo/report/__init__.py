"""The report: one self-contained HTML page over a run, rebuilt from the run's files alone.

data.py gathers and samples.py chooses what to look at; headline.py and figures.py say it; drawing.py, page.html and
style.css show it. summary.py holds a run's figures, which the closing table in a terminal shows as well.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.stores import write_bytes

if TYPE_CHECKING:
    from isr_dpo.report.data import Failure, Page


def build(run_uri: str, recipe: Recipe, *, failure: Failure | None = None) -> str:
    """Writes the page of the run so far to <run>/report/index.html and returns its URI.

    `failure` stands at the top of the page; without it the run's failed.json does, where there is one. Missing outputs
    are shown as pending, damaged ones named.

    Raises:
        OutsideError: the store stays away.
    """
    from isr_dpo.report.data import gather

    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = gather(run_uri, recipe, made=made, failure=failure)
    uri = layout.report(run_uri)
    write_bytes(uri, render(page).encode())
    return uri


def render(page: Page) -> str:
    """The page as HTML; equal pages give equal text. Every text of the run is escaped."""
    import jinja2
    import yaml
    from markupsafe import Markup

    from isr_dpo.report import figures, headline

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isr_dpo", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        page=page,
        rows=headline.rows(page.summary),
        set_rows=headline.set_rows(page.summary),
        trained=sum(headline.is_trained(page.summary, policy) for policy in page.summary.policies),
        verdict=headline.verdict(page.summary),
        sections=figures.sections(page),
        svg=Markup,  # our own drawings
        recipe_text=yaml.safe_dump(page.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        judged=[policy for policy in page.summary.policies if policy.preferences],
        dpo=[policy for policy in page.summary.policies if policy.training],
        percent=headline.percent,
        number=headline.number,
    )
