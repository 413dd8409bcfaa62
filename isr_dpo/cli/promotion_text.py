"""A decision about a promotion, in a terminal and as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isr_dpo.registry import Decision, Flip, Match, Side, flips

if TYPE_CHECKING:
    from rich.table import Table

    from isr_dpo.evaluate.statistics import Difference

TEXT_CHARACTERS = 400


def show(decision: Decision, *, flips: int) -> None:
    """Prints the figures side by side, and at most `flips` of the answers that changed sides."""
    from rich.console import Console

    match = decision.match
    if match is None:
        return
    console = Console()
    console.print(f"{match.set}: {match.grader.words}", highlight=False, markup=False, soft_wrap=True)
    console.print(_table(match))
    for line in _below(match, shown=flips):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()


def as_json(decision: Decision) -> str:
    """All that was found, each flip included."""
    match = decision.match
    tree: dict[str, Any] = {
        "name": decision.name,
        "candidate": decision.candidate.number,
        "champion": None if decision.champion is None else decision.champion.number,
        "objections": decision.objections,
        "limits": decision.limits.model_dump(mode="json"),
        "missing": [{"what": each.what, "command": each.command} for each in decision.missing],
    }
    if match is not None:
        tree |= {
            "set": match.set,
            "grader": asdict(match.grader),
            "sides": [_side(side) for side in (match.candidate, match.champion) if side is not None],
            "comparison": None if match.comparison is None else _comparison(match),
            "flips": [asdict(flip) for flip in flips(match)],
        }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _table(match: Match) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    sides = [side for side in (match.champion, match.candidate) if side is not None]
    for side in sides:
        role = "candidate" if side is match.candidate else "champion"
        table.add_column(f"{role} ({side.version.number})", justify="right", no_wrap=True)
    found = match.comparison
    for name in ("gain, 95 % interval", "p") if found is not None else ():
        table.add_column(name, justify="right", no_wrap=True)
    gains = (None, None) if found is None else (found.accuracy, found.score)
    for name, values, difference, scale, digits in (
        ("accuracy %", [s.accuracy for s in sides], gains[0], 100.0, 1),
        ("score", [s.score for s in sides], gains[1], 1.0, 2),
        ("words an answer", [s.words for s in sides], None, 1.0, 1),
        ("unscored", [s.unscored for s in sides], None, 1.0, 0),
    ):
        cells = ["-" if value is None else f"{scale * value:.{digits}f}" for value in values]
        if difference is not None:
            cells += [_interval(difference, scale, digits), _p_value(difference.p_value)]
        table.add_row(name, *cells)
    return table


def _below(match: Match, *, shown: int) -> list[str]:
    found = match.comparison
    if found is None:
        return [f"{len(match.candidate.grades)} questions"]
    gained, lost = len(found.flips.to_right), len(found.flips.to_wrong)
    lines = [
        f"{found.rows} questions on {found.accuracy.clusters} videos are scored in both; "
        f"answers that changed sides: {gained} gained, {lost} lost"
    ]
    for flip in flips(match)[:shown] if shown else ():
        lines += _flip(flip)
    if shown < gained + lost:
        lines.append(f"{gained + lost - shown} more; --flips N shows more of them, --json FILE all")
    return lines


def _flip(flip: Flip) -> list[str]:
    return [
        "",
        f"{'gained' if flip.gained else 'lost'}  {_plain(flip.id)}: {_plain(flip.question)}",
        f"  truth      {_plain(flip.truth)}",
        f"  champion   {_plain(flip.champion)}",
        f"  candidate  {_plain(flip.candidate)}",
    ]


def _plain(text: str) -> str:
    """On one line, without what a terminal would act on: others wrote it."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= TEXT_CHARACTERS else line[:TEXT_CHARACTERS] + "…"


def _side(side: Side) -> dict[str, Any]:
    return {
        "version": side.version.number,
        "run": side.place.run.uri,
        "policy": side.place.policy,
        "answers": len(side.grades),
        **{name: getattr(side, name) for name in ("accuracy", "score", "words", "unscored")},
    }


def _comparison(match: Match) -> dict[str, Any]:
    found = match.comparison
    assert found is not None
    return {"rows": found.rows, "accuracy": _difference(found.accuracy), "score": _difference(found.score)}


def _difference(found: Difference) -> dict[str, float | None]:
    """A bound that nothing is known of is null: JSON has no infinity."""
    return {key: value if math.isfinite(value) else None for key, value in found._asdict().items()}


def _interval(difference: Difference, scale: float, digits: int) -> str:
    low, high = (f"{scale * bound:+.{digits}f}" for bound in (difference.low, difference.high))
    return f"{scale * difference.mean:+.{digits}f} [{low}, {high}]"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
