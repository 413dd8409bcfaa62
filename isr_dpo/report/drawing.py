"""How a figure becomes inline SVG. Equal drawings give equal bytes; colours are the page's CSS variables, so that one
drawing serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure as Canvas

# matplotlib wants real colours: each stands for a CSS variable and occurs nowhere else.
INK, LINE, *_SERIES = (f"#0{n}0{n}0{n}" for n in range(1, 10))
COLOURS = tuple(_SERIES)
_CSS = {INK: "--quiet", LINE: "--line", **{colour: f"--c{n}" for n, colour in enumerate(COLOURS, start=1)}}
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
BARS: Mapping[str, Any] = {"capsize": 3, "elinewidth": 1.2}
"""Of intervals."""
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
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
_LABEL_CHARACTERS = 36
WIDE, NARROW = (4.2, 2.4), (3.4, 2.3)
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
    """Above the axes, in as many columns as have room."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_short(label) for label in labels]
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=_columns(labels, axes.figure.get_figwidth()),
        borderaxespad=0.1,
        handlelength=1.3,
        columnspacing=1.1,
    )


def taller(size: tuple[float, float], labels: Sequence[str]) -> tuple[float, float]:
    """`size` with room above the axes for the rows of a legend beyond the first."""
    labels = [_short(label) for label in labels]
    rows = -(-len(labels) // _columns(labels, size[0])) if labels else 1
    return size[0], size[1] + 0.16 * (rows - 1)


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"


def _columns(labels: Sequence[str], width: float) -> int:
    """Legend entries that fit side by side, by their letters."""
    longest = max(map(len, labels), default=1)
    return max(1, min(len(labels), int(15 * width / (longest + 5))))


def groups(axes: Any, names: Sequence[str], bars: Mapping[str, Sequence[float]]) -> None:
    """Bars side by side, a group a name, a colour a label of `bars`."""
    width = 0.75 / max(len(bars), 1)
    for number, (label, values) in enumerate(bars.items()):
        x = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(names))]
        axes.bar(x, values, width=0.92 * width, color=COLOURS[number % len(COLOURS)], label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    if len(names) > 5:
        axes.tick_params(axis="x", labelrotation=30)
    if len(bars) > 1:
        legend(axes)


def _inline(svg: str, key: str) -> str:
    """The drawing for use within a page: no prologue, no outside names, ids of its own, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true" focusable="false">', svg, count=1)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'(url\(|xlink:href=")#', rf"\1#{key}-", svg).replace("xlink:href", "href")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    svg = re.sub(r'\bstyle="([^"]*)"', lambda found: _attributes(found.group(1)), svg)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _attributes(style: str) -> str:
    """Declarations as attributes of their own: a page whose policy allows no inline styles shows them too."""
    named = (declaration.partition(":") for declaration in style.split(";") if declaration.strip())
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, _, value in named)
