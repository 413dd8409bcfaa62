"""DPO, every optimiser step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator, PercentFormatter

from isr_dpo.report import drawing
from isr_dpo.report.data import LogLine, RunData
from isr_dpo.report.figures.figure import Figure, figure

_TRACED = {
    "loss": ("Loss", "DPO loss"),
    "reward_accuracy": ("Reward accuracy", "Share of pairs whose chosen response has the higher implicit reward"),
    "margin": ("Reward margin", "Implicit reward of the chosen response less that of the rejected one, mean"),
}


def figures(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """Of one run faint as logged and strong the running mean; of several the means alone."""
    return tuple(_trace(runs, key) for key in _TRACED)


def _trace(runs: Sequence[RunData], key: str) -> Figure:
    title, what = _TRACED[key]
    known = [data for data in runs if data.training]

    def draw(axes: Any) -> None:
        for number, data in enumerate(known):
            colour = drawing.COLOURS[number % len(drawing.COLOURS)]
            _draw(axes, data.training, key, colour=colour, alone=len(known) == 1, label=data.name)
        axes.set_xlabel("optimiser step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if key == "reward_accuracy":
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        if len(known) > 1:
            drawing.legend(axes)

    said = ". ".join((f"{data.name}: " if len(known) > 1 else "") + _said(data.training, key) for data in known)
    caption = f"{what}, by optimiser step."
    labels = [data.name for data in known] if len(known) > 1 else []
    key_on_page = f"training-{key.replace('_', '-')}"
    return figure(key_on_page, title, caption, said, draw if known else None, size=drawing.NARROW, labels=labels)


def _draw(
    axes: Any, training: Mapping[int, Sequence[LogLine]], key: str, *, colour: str, alone: bool, label: str
) -> None:
    start = 0
    for index, steps in sorted(training.items()):
        values = [float(getattr(line, key)) for line in steps]
        x = range(start, start + len(values))
        if alone:
            axes.plot(x, values, color=colour, linewidth=0.8, alpha=0.35)
            _part_rounds(axes, index, start)
        axes.plot(x, _running_mean(values), color=colour, label=label if start == 0 else None)
        start += len(values)


def _part_rounds(axes: Any, index: int, start: int) -> None:
    if start:
        axes.axvline(start, color=drawing.INK, linewidth=0.8, linestyle=":")
    name, place = "seed" if index == 0 else f"r{index}", (start, 1)
    axes.annotate(name, place, xycoords=("data", "axes fraction"), xytext=(3, 2), textcoords="offset points")


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean of the last values, a tenth of them at a time."""
    width = max(1, len(values) // 10)
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]


def _said(training: Mapping[int, Sequence[LogLine]], key: str) -> str:
    return "; ".join(
        f"{f'round {i}' if i else 'seed DPO'} from {getattr(lines[0], key):.3f} to {getattr(lines[-1], key):.3f}"
        for i, lines in sorted(training.items())
    )
