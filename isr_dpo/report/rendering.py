"""The page's templates filled in, under a policy that lets the browser run and load nothing but what we wrote."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from isr_dpo.config import Recipe
from isr_dpo.report import differences, embedded, flips, followed, headline
from isr_dpo.report.data import Page
from isr_dpo.report.sections import sections
from isr_dpo.report.tables import Table

STYLES = ("base.css", "tables.css", "samples.css")
SCRIPTS = ("dom.js", "browser.js", "samples.js", "flips.js", "start.js")
STATIC_SAMPLES, STATIC_FLIPS = 4, 6
"""Shown without the script."""


def html(page: Page) -> str:
    """The page as HTML; every text of the runs is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isr_dpo.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = _joined(STYLES), _joined(SCRIPTS)
    return environment.get_template(
        "page.html"
    ).render(
        page=page,
        several=len(page.runs) > 1,
        policy=policy(style, script),
        style=Markup(style),  # noqa: S704  ours, as are script and drawings
        script=Markup(script),  # noqa: S704
        data=Markup(embedded.block(page)),  # noqa: S704  escaped there
        svg=Markup,
        sentence=_sentence,
        sections=sections(page),
        recipes=[_recipe(data.recipe) for data in page.runs],
        static_samples=page.samples.shown[:STATIC_SAMPLES],
        followed_videos=followed.videos(page),
        followed_questions=followed.questions(page),
        followed_graders=followed.graders(page),
        claims=followed.claims(page),
        **_result(page),
        **_flips(page.flips),
    )


def policy(style: str, script: str) -> str:
    """The content security policy: nothing but this style and this script, by their hashes, and images within."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _joined(names: tuple[str, ...]) -> str:
    folder = resources.files("isr_dpo.report") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def _result(page: Page) -> dict[str, Any]:
    runs = [data.run for data in page.runs]
    several = len(runs) > 1
    tables: list[tuple[str, Table]] = []
    if (sets := headline.sets_table(page.runs)) is not None:
        tables.append(("All evaluation sets", sets))
    if several and (between := differences.between(runs)) is not None:
        tables.append(("Differences between runs", between))
    found: list[tuple[str, Table]] = []
    for run in runs:
        title = "Differences between policies" + (f" of {run.name}" if several else "")
        found += [(title, within)] if (within := differences.within(run)) is not None else []
    return {
        "headline": headline.table(page.runs),
        "verdicts": [(data, headline.verdict(data)) for data in page.runs],
        "tiles": headline.tiles(page.runs[0]) if len(runs) == 1 else [],
        "different_graders": headline.different_graders(page.runs),
        "result_tables": tables if several else [*tables, *found],
        "folded_tables": found if several else [],
        "graders": list(dict.fromkeys(data.grader for data in page.runs)),
        "trained": [sum(headline.is_trained(d.summary, p) for p in d.summary.policies) for d in page.runs],
    }


def _flips(found: flips.Flips) -> dict[str, Any]:
    """Without the script: from the first policy to the last."""
    last = len(found.systems) - 1
    moved = [(one, move) for one in found.questions if (move := one.moves(0, last))]
    first_to_last = {"flips_from": found.systems[0].label, "flips_to": found.systems[last].label}
    return {"static_flips": moved[:STATIC_FLIPS], **first_to_last}


def _sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _recipe(recipe: Recipe) -> str:
    return str(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True))
