"""How long responses and answers are: the paper's Figures 4a, 4b and 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isr_dpo import layout
from isr_dpo.analyse.lengths import Lengths, RoundLengths
from isr_dpo.report import drawing
from isr_dpo.report.data import RunData
from isr_dpo.report.figures.figure import Figure, Line, figure, lines


def figures(runs: Sequence[RunData]) -> tuple[Figure, ...]:
    """With one run chosen and rejected responses, with several the chosen ones of each."""
    known = [data.lengths for data in runs if data.lengths is not None]
    return _words(known), _ratio(known), _answers(known)


def _words(known: Sequence[Lengths]) -> Figure:
    series = [_line(found.run, found.rounds, "chosen") for found in known]
    if len(known) == 1:
        rounds = known[0].rounds
        series = [_line("chosen", rounds, "chosen"), _line("rejected", rounds, "rejected", dashed=True)]
    caption = "Mean words of chosen responses by iteration, with 95 % intervals (the paper's Fig. 4a); 0: the seed."
    return lines("words-by-round", "Words a response", caption, series, along="round", form=".1f", size=drawing.NARROW)


def _ratio(known: Sequence[Lengths]) -> Figure:
    series = [_line(found.run, found.rounds, "ratio") for found in known]
    caption = (
        "|y_w| / |y_l|, words of chosen over words of rejected responses, by iteration (the paper's Fig. 4b); dashed: "
        "equal length."
    )
    title = "Length ratio, chosen to rejected"
    return lines("length-ratio", title, caption, series, along="round", form=".3f", even=1.0, size=drawing.NARROW)


def _line(label: str, rounds: Sequence[RoundLengths], key: str, *, dashed: bool = False) -> Line:
    kept = [(found.round, getattr(found, key)) for found in rounds if getattr(found, key) is not None]
    return Line(label, tuple(index for index, _ in kept), tuple(value for _, value in kept), dashed=dashed)


def _answers(known: Sequence[Lengths]) -> Figure:
    """Bars a set: of one run its first and last policy, of several the last of each."""
    bars: dict[str, dict[str, float]] = {}
    for found in known:
        policies = sorted({answered.policy for answered in found.sets})
        for policy in policies[-1:] if len(known) > 1 else dict.fromkeys((*policies[:1], *policies[-1:])):
            name = layout.policy_name(policy)
            label = f"{found.run}, {name}" if len(known) > 1 else name
            bars[label] = {one.set: one.words.value for one in found.sets if one.policy == policy and one.words}
    sets = sorted({name for values in bars.values() for name in values})

    def draw(axes: Any) -> None:
        drawing.groups(axes, sets, {label: [v.get(name, 0.0) for name in sets] for label, v in bars.items()})

    said = "; ".join(
        f"{label}: " + ", ".join(f"{name} {value:.1f}" for name, value in values.items())
        for label, values in bars.items()
    )
    caption = "Mean words of the answers to each evaluation set (the paper's Fig. 5); shorter is not better by itself."
    return figure(
        "answer-words", "Words an answer", caption, said, draw if sets else None, size=drawing.NARROW, labels=[*bars]
    )
