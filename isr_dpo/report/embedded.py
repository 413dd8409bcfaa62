"""What the page's script works on: plain data in a block that no browser runs, and that no text can end."""

from __future__ import annotations

import json
from typing import Any

from isr_dpo.analyse.differences import Words
from isr_dpo.report.data import Page
from isr_dpo.report.flips import Flips, Question
from isr_dpo.report.pictures import Pictures
from isr_dpo.report.samples import Sample

_ESCAPES = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
"""Within JSON these letters stand in strings alone, so that their escapes mean the same."""


def block(page: Page) -> str:
    """The page's data as JSON without `<`, `>`, `&` and line separators: `</script>` and `<!--` cannot stand in it."""
    names = {id(data.run): number for number, data in enumerate(page.runs)}
    tree = {
        "runs": [data.name for data in page.runs],
        "strips": {key: {"tiny": s.tiny, "uris": s.uris} for key, s in page.pictures.strips.items()},
        "samples": [_sample(one, names[id(one.run)], page.pictures) for one in page.samples.shown],
        "flips": _flips(page.flips, page.pictures),
    }
    return safe(tree)


def safe(tree: Any) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _sample(one: Sample, run: int, pictures: Pictures) -> dict[str, Any]:
    row = one.row
    return {
        "run": run,
        "round": one.round,
        "id": row.id,
        "video": row.video,
        "strip": pictures.key(one.run, row.video),
        "prompt": row.prompt,
        "responses": row.responses,
        "outcome": row.outcome,
        "winner": row.winner,
        "share": one.share,
        "swayed": one.swayed,
        "orders": [[*order.probabilities, order.share] for order in one.orders],
        "before": None if one.before is None else _marked(one.changes.before),
        "after": None if one.after is None else _marked(one.changes.after if one.before is not None else one.plain),
        "borrowed": one.borrowed,
        "blind": one.after is None and row.context is None,
        "rationales": [text for text in row.rationales if text.strip()],
    }


def _marked(words: tuple[Words, ...]) -> list[list[str]]:
    return [[run.text, run.mark] for run in words]


def _flips(flips: Flips, pictures: Pictures) -> dict[str, Any]:
    return {
        "systems": [system.label for system in flips.systems],
        "counts": [[c.set, c.first, c.second, c.rows, c.to_right, c.to_wrong] for c in flips.counts],
        "questions": [_question(one, pictures) for one in flips.questions],
    }


def _question(one: Question, pictures: Pictures) -> dict[str, Any]:
    return {
        "set": one.set,
        "id": one.id,
        "video": one.video,
        "strip": pictures.key(one.run, one.video),
        "text": one.text,
        "truth": one.truth,
        "answers": [None if a is None else [a.correct, a.score, a.text, a.reply] for a in one.answers],
    }
