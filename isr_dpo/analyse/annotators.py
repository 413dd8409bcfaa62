"""What annotators chose, and how far they agree with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from isr_dpo.analyse.estimate import Estimate, mean
from isr_dpo.annotate.choices import Choice
from isr_dpo.annotate.sheet import Side

Label = Side | str
"""The preferred response, or the reason why there is none."""


@dataclass(frozen=True)
class Between:
    """Two annotators on the rows that both labelled."""

    first: str
    second: str
    both_labelled: int
    share: Estimate | None
    """Of the rows on which both prefer an answer, those on which it is the same."""
    kappa: float | None
    """Cohen's, on the same rows."""
    kappa_with_ties: float | None
    """Cohen's over response 1, response 2, tie and unclear, on all rows that both labelled."""


def between(first: str, a: Mapping[str, Choice], second: str, b: Mapping[str, Choice]) -> Between:
    """Two annotators' agreement with each other."""
    common = sorted(a.keys() & b.keys())
    decided = [i for i in common if a[i].choice is not None and b[i].choice is not None]
    return Between(
        first=first,
        second=second,
        both_labelled=len(common),
        share=mean([float(a[i].choice == b[i].choice) for i in decided], [a[i].video for i in decided], within=(0, 1)),
        kappa=kappa([word(a[i]) for i in decided], [word(b[i]) for i in decided]),
        kappa_with_ties=kappa([word(a[i]) for i in common], [word(b[i]) for i in common]),
    )


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e) with the chance agreement p_e of the two marginals; None without rows, or
    where both always say the same one thing."""
    n = len(first)
    if n == 0:
        return None
    observed = sum(x == y for x, y in zip(first, second, strict=True)) / n
    of_first, of_second = Counter(first), Counter(second)
    chance = sum(of_first[label] * of_second[label] for label in of_first) / n**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def first_position(choices: Iterable[Choice]) -> Estimate | None:
    """Of the preferences, those for the answer that was shown first."""
    preferred = [choice for choice in choices if choice.choice is not None]
    values = [float(choice.choice == choice.shown_first) for choice in preferred]
    return mean(values, [choice.video for choice in preferred], within=(0.0, 1.0))


def majority(said: Sequence[str]) -> Label:
    """Of several people's `word`s: the response that more prefer than the other; without preferences a tie goes before
    unclear."""
    lead = said.count("0") - said.count("1")
    if lead:
        return 0 if lead > 0 else 1
    if "0" in said:
        return "label: divided"
    return "label: tie" if "tie" in said else "label: unclear"


def word(choice: Choice) -> str:
    """`0` or `1`, the preferred response; `tie` or `unclear`."""
    return choice.outcome if choice.choice is None else str(choice.choice)


def label(said: str) -> Label:
    """Of what `word` gives."""
    if said in ("0", "1"):
        return 0 if said == "0" else 1
    return f"label: {said}"
