"""A table as data: the page's template draws every one of them in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isr_dpo.analyse.estimate import Estimate

NONE = "–"


@dataclass(frozen=True)
class Cell:
    """A figure with, in smaller letters, its interval or a remark. `tone` is good, bad, quiet or empty."""

    text: str
    sub: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """`head` names it. A row with a `group` begins one, under that title."""

    head: Cell
    cells: tuple[Cell, ...]
    best: bool = False
    group: str = ""


@dataclass(frozen=True)
class Table:
    """`columns` name the head and every cell."""

    key: str
    label: str
    """Read out as the table's name."""
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


EMPTY = Cell(NONE, tone="quiet")


def percent(metrics: Mapping[str, float], key: str) -> str:
    """A share of a metrics.json as a percentage."""
    return f"{100 * metrics[key]:.1f} %" if key in metrics else NONE


def number(metrics: Mapping[str, float], key: str, *, digits: int = 0) -> str:
    """A figure of a metrics.json."""
    return f"{metrics[key]:,.{digits}f}" if key in metrics else NONE


def interval(metrics: Mapping[str, float], key: str, *, scale: float = 1.0, digits: int) -> str:
    """`low–high`, empty where the metrics have none."""
    low, high = f"{key}_low", f"{key}_high"
    if low not in metrics or high not in metrics:
        return ""
    return f"{scale * metrics[low]:.{digits}f}–{scale * metrics[high]:.{digits}f}"


def estimate(value: Estimate | None, *, digits: int, scale: float = 1.0, unit: str = "") -> Cell:
    """A figure and its 95 % interval."""
    if value is None:
        return EMPTY
    return Cell(f"{scale * value.value:.{digits}f}{unit}", _bounds(value, scale, f".{digits}f", "–"))


def difference(value: Estimate | None, *, digits: int, scale: float = 1.0) -> Cell:
    """A difference with its sign and its 95 % interval, toned where that leaves zero out."""
    if value is None:
        return EMPTY
    tone = ("good" if value.value > 0 else "bad") if value.is_clear else ""
    text = f"{scale * value.value:+.{digits}f}".replace("-", "−")
    return Cell(text, _bounds(value, scale, f"+.{digits}f", " to ").replace("-", "−"), tone)


def _bounds(value: Estimate, scale: float, form: str, between: str) -> str:
    if value.low is None or value.high is None:
        return ""
    return f"{format(scale * value.low, form)}{between}{format(scale * value.high, form)}"


def seconds(value: float) -> str:
    """A length of time, in the unit that suits it."""
    if value < 90:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 90:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
