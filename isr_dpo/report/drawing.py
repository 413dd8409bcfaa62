"""How a figure becomes inline SVG. Equal drawings give equal bytes; colours are the page's CSS variables, so that one
drawing serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

# matplotlib wants real colours: each stands for a CSS variable and occurs nowhere else.
INK, LINE, FIRST, SECOND, THIRD, FOURTH, FIFTH = (f"#0{n}0{n}0{n}" for n in range(1, 8))
_CSS = {
    INK: "--quiet",
    LINE: "--line",
    FIRST: "--c1",
    SECOND: "--c2",
    THIRD: "--c3",
    FOURTH: "--c4",
    FIFTH: "--c5",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "isr-dpo",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
WIDE, NARROW = (4.4, 2.6), (3.3, 2.3)
"""Inches, of figures that stand two and three abreast: so that their letters come out alike."""


def svg(key: str, draw: Callable[[Any], None], *, size: tuple[float, float] = WIDE) -> str:
    """What `draw` draws on the axes it is given, `size` in inches; `key` is unique on the page."""
    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=size, layout="constrained")
        draw(canvas.subplots())
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), key)


def integers(axes: Any, x: Sequence[int], label: str) -> None:
    places = sorted(set(x))
    axes.set_xlim(places[0] - 0.5, places[-1] + 0.5)
    axes.set_xticks(places, [f"{place:02d}" if label == "policy" else str(place) for place in places])
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="x")


def even(axes: Any, y: float) -> None:
    axes.axhline(y, color=INK, linewidth=0.9, linestyle="--")


def legend(axes: Any) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.1, handlelength=1.3, columnspacing=1.1
    )


def _inline(svg: str, key: str) -> str:
    """The drawing for use within a page: no prologue, no outside names, ids of its own, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", svg).replace("xlink:href", "href")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg
