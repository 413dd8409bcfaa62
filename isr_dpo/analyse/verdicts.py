"""What a judge chose on a row, and how often that is the label: as in Lee et al. (2023), whom the paper follows, the
probabilities of the two options averaged over both orders make the choice (section 3.1 there, "AI Labeler Alignment").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from isr_dpo.analyse.annotators import Label
from isr_dpo.analyse.estimate import Estimate, mean
from isr_dpo.annotate.sheet import Side
from isr_dpo.records import Judged

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What a judge chose on a row; `side` None: nothing, for `reason`."""

    side: Side | None
    share: float | None = None
    reason: str = ""
    by_order: tuple[Side, ...] = field(default=())
    """In each order that was asked and is no tie by itself."""
    places: tuple[float, ...] = field(default=())
    """For each order: 1 where the response that stood first was chosen."""


@dataclass(frozen=True)
class Alignment:
    """A judge against labels. Shares are None where there is nothing to share."""

    share: Estimate | None
    """Of the rows compared, those on which the judge's choice is the label."""
    agreed: int
    compared: int
    left_out: Mapping[str, int]
    """Labelled rows that are not compared, by reason."""
    consistency: Estimate | None
    """Of the rows compared in both orders, those on which the judge chose the same in each."""
    consistent_share: Estimate | None
    """`share` among those."""
    first_position: Estimate | None
    """Of the judge's single verdicts, those for the response that stood first; 0.5 without a liking for a place."""


def verdict(row: Judged) -> Verdict:
    """The choice of the averaged probabilities, whatever margin the recipe asks of a preference; of a judge without
    probabilities (`random`, `longer`) its winner."""
    if not row.probabilities or row.outcome == "unparsed":
        return Verdict(row.winner, reason="" if row.winner is not None else f"judge: {row.outcome}")
    shares = [first / (first + second) for first, second in row.probabilities]
    share = sum(shares) / len(shares)
    tie = abs(share - 0.5) < _ROUNDING
    by_order: list[Side] = [0 if s > 0.5 else 1 for s in shares if s != 0.5]
    places = [s if stood == 0 else 1 - s for stood, s in enumerate(shares)]  # the second order shows response 1 first
    return Verdict(
        side=None if tie else 0 if share > 0.5 else 1,
        share=share,
        reason="judge: tie" if tie else "",
        by_order=tuple(by_order),
        places=tuple(0.5 if p == 0.5 else float(p > 0.5) for p in places),
    )


def alignment(judged: Mapping[str, Judged], labels: Mapping[str, Label]) -> Alignment:
    """The judge's choices on rows by id against labels: a response, or the reason why there is none."""
    verdicts = {i: verdict(judged[i]) for i in labels}
    left_out = Counter(label for label in labels.values() if isinstance(label, str))
    left_out += Counter(
        verdicts[i].reason for i, label in labels.items() if not isinstance(label, str) and verdicts[i].side is None
    )
    rows = [i for i, label in sorted(labels.items()) if not isinstance(label, str) and verdicts[i].side is not None]
    right = {i: float(verdicts[i].side == labels[i]) for i in rows}
    both = [i for i in rows if len(judged[i].probabilities) == 2]
    consistent = {i: float(len(verdicts[i].by_order) == 2 and len(set(verdicts[i].by_order)) == 1) for i in both}

    def share(values: Mapping[str, float]) -> Estimate | None:
        return mean(list(values.values()), [judged[i].video for i in values], within=(0.0, 1.0))

    places = [(place, judged[i].video) for i in both for place in verdicts[i].places]
    return Alignment(
        share=share(right),
        agreed=int(sum(right.values())),
        compared=len(rows),
        left_out=dict(sorted(left_out.items())),
        consistency=share(consistent),
        consistent_share=share({i: right[i] for i in both if consistent[i]}),
        first_position=mean([place for place, _ in places], [video for _, video in places], within=(0.0, 1.0)),
    )
