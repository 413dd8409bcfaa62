"""Where the time went, a bar a round or policy, a colour a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isr_dpo.report import drawing
from isr_dpo.report.data import RunData
from isr_dpo.report.figures.figure import Figure, figure
from isr_dpo.report.tables import seconds
from isr_dpo.times import StepTime
from isr_dpo.titles import ONCE

SHOWN = ("generate", "retrospect", "judge", "prefer", "train", "answer", "evaluate")
"""Steps of some length; what the rest take stands in the table."""


def figures(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """A figure a run that has records."""
    return tuple(_of_run(data, number) for number, data in enumerate(runs) if data.times)


def wall(times: Sequence[StepTime], step: str, index: int) -> float:
    """Seconds of a step: its pods' shares run side by side, then the task that seals."""
    of_step = [time for time in times if (time.step, time.index) == (step, index)]
    shares = [time.seconds for time in of_step if time.share]
    return max(shares, default=0.0) + sum(time.seconds for time in of_step if not time.share)


def _of_run(data: RunData, number: int) -> Figure:
    places = sorted({time.index for time in data.times if time.step not in ONCE})
    spent = {step: [wall(data.times, step, index) for index in places] for step in SHOWN}
    spent = {step: values for step, values in spent.items() if any(values)}
    longest = max((sum(column) for column in zip(*spent.values(), strict=True)), default=0.0)
    scale, unit = (3600.0, "hours") if longest > 5400 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")

    def draw(axes: Any) -> None:
        floor = [0.0] * len(places)
        for step, values in spent.items():
            colour = drawing.COLOURS[SHOWN.index(step) % len(drawing.COLOURS)]
            scaled = [value / scale for value in values]
            axes.bar(places, scaled, bottom=floor, color=colour, width=0.6, label=step)
            floor = [a + b for a, b in zip(floor, scaled, strict=True)]
        axes.set_ylabel(unit)
        drawing.integers(axes, places, "round")
        drawing.legend(axes)

    said = "; ".join(
        f"{step}: " + ", ".join(f"round {i} {seconds(v)}" for i, v in zip(places, values, strict=True))
        for step, values in spent.items()
    )
    caption = (
        f"Time of the steps of {data.name}, by round; answer and evaluate stand at the round that their policy begins."
    )
    title = "Time a step"
    return figure(f"time-{number}", title, caption, said, draw if spent else None, labels=[*spent])
