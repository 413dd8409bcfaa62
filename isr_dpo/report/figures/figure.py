"""A figure with its caption, and the kind that most of them are: lines over rounds or policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import PercentFormatter

from isr_dpo.analyse.estimate import Estimate
from isr_dpo.report import drawing


@dataclass(frozen=True)
class Figure:
    """`svg` is None where there is nothing to draw yet; `alt` is read out in its stead."""

    key: str
    title: str
    caption: str
    alt: str
    svg: str | None


@dataclass(frozen=True)
class Line:
    """A series: a value, perhaps with its interval, at each place. Places count from 0."""

    label: str
    places: tuple[int, ...]
    values: tuple[Estimate, ...]
    dashed: bool = False
    colour: int | None = None
    """None: its place among the lines."""


def figure(
    key: str,
    title: str,
    caption: str,
    said: str,
    draw: Callable[[Any], None] | None,
    *,
    size: tuple[float, float] = drawing.WIDE,
    labels: Sequence[str] = (),
) -> Figure:
    """`draw` draws on the axes it is given; None: nothing yet. `labels` are its legend's."""
    if draw is None:
        return Figure(key, title, caption, "", None)
    return Figure(key, title, caption, f"{title}: {said}", drawing.svg(key, draw, size=drawing.taller(size, labels)))


def lines(
    key: str,
    title: str,
    caption: str,
    series: Sequence[Line],
    *,
    along: str,
    form: str,
    unit: str = "",
    share: bool = False,
    even: float | None = None,
    size: tuple[float, float] = drawing.WIDE,
) -> Figure:
    """Lines along rounds or policies (`along`), values of `form` and `unit` in the words. `share`: values are shares,
    shown on the whole scale; `even` marks a level."""
    kept = [line for line in series if line.places]

    def draw(axes: Any) -> None:
        if even is not None:
            drawing.even(axes, even)
        for number, line in enumerate(kept):
            _draw_line(axes, line, number, offset=_offset(number, len(kept)))
        drawing.integers(axes, [place for line in kept for place in line.places], along)
        if share:
            axes.set_ylim(-0.03, 1.03)
        if unit.strip() == "%" or share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0 if share else 100.0, decimals=0))
        if len(kept) > 1:
            drawing.legend(axes)

    said, labels = _said(kept, along, form, unit), [line.label for line in kept] if len(kept) > 1 else []
    return figure(key, title, caption, said, draw if kept else None, size=size, labels=labels)


def _draw_line(axes: Any, line: Line, number: int, *, offset: float) -> None:
    colour = drawing.COLOURS[(number if line.colour is None else line.colour) % len(drawing.COLOURS)]
    style = {
        "color": colour,
        "marker": drawing.MARKERS[number % len(drawing.MARKERS)],
        "linestyle": "--" if line.dashed else "-",
        "label": line.label,
    }
    x = [place + offset for place in line.places]
    y = [value.value for value in line.values]
    if any(value.low is not None for value in line.values):
        low = [v.value - (v.value if v.low is None else v.low) for v in line.values]
        high = [(v.value if v.high is None else v.high) - v.value for v in line.values]
        axes.errorbar(x, y, yerr=[[max(0.0, d) for d in low], [max(0.0, d) for d in high]], **style, **drawing.BARS)
    else:
        axes.plot(x, y, **style)


def _offset(number: int, of: int) -> float:
    """Lines stand a little apart, so that their intervals do not hide one another."""
    return 0.0 if of == 1 else 0.12 * (number - (of - 1) / 2) / max(1.0, (of - 1) / 2)


def _said(series: Sequence[Line], along: str, form: str, unit: str) -> str:
    def place(number: int) -> str:
        return f"policy-{number:02d}" if along == "policy" else f"{along} {number}"

    told = [
        ", ".join(f"{place(x)} {format(v.value, form)}{unit}" for x, v in zip(line.places, line.values, strict=True))
        for line in series
    ]
    if len(told) == 1:
        return told[0]
    return "; ".join(f"{line.label}: {text}" for line, text in zip(series, told, strict=True))
