"""Judged rows to look at, chosen by a rule and not by hand: of each round the judge's surest choices, its closest
calls, and some of every reason for which a row was dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isr_dpo.analyse.differences import Difference, Words, difference
from isr_dpo.records import Judged
from isr_dpo.report.reading import KeptRun

PER_PAGE = 120
AT_LEAST_PER_ROUND = 4


class Order(NamedTuple):
    """One order in which the judge was asked: probabilities of the labels, as read; `first` is the response shown
    first."""

    first: int
    probabilities: tuple[float, float]
    share: float
    """P(response 1 is better), the two labels normalised; 0.5 where both are zero."""


@dataclass(frozen=True)
class Sample:
    """A judged row of a round, with the descriptions of its video."""

    run: KeptRun
    round: int
    row: Judged
    before: str | None
    """Own description of the round before, c_(t-1)."""
    after: str | None
    """Own description of this round, c_t."""

    @property
    def orders(self) -> list[Order]:
        return [
            Order(number, (p, q), p / (p + q) if p + q else 0.5)
            for number, (p, q) in enumerate(self.row.probabilities, start=1)
        ]

    @property
    def share(self) -> float | None:
        """P(response 1 is better), averaged over the orders."""
        return share(self.row)

    @property
    def swayed(self) -> bool:
        """Whether the order in which the responses were shown changed the judge's choice."""
        return len({p > q for p, q in self.row.probabilities}) > 1

    @property
    def borrowed(self) -> str | None:
        """The description that the judge read, where it is another video's."""
        read = self.row.context
        return read if read is not None and self.after is not None and read != self.after else None

    @property
    def plain(self) -> tuple[Words, ...]:
        """`after` without marks."""
        return (Words(self.after),) if self.after else ()

    @property
    def changes(self) -> Difference:
        """`before` and `after` word by word, the differences marked."""
        return difference(self.before or "", self.after or "")


@dataclass(frozen=True)
class Samples:
    """Those of a page, the latest round first, and how many rows they are drawn from."""

    shown: tuple[Sample, ...]
    judged: int


def gather(runs: Sequence[KeptRun], *, count: int = PER_PAGE) -> Samples:
    """About `count` judged rows of all runs and rounds together. The same runs give the same choice."""
    rounds = [(run, index) for run in runs for index in reversed(run.rounds)]
    each = max(AT_LEAST_PER_ROUND, count // max(len(rounds), 1))
    shown: list[Sample] = []
    judged = 0
    for run, index in rounds:
        rows = run.judged(index) or []
        judged += len(rows)
        shown += _of_round(run, index, choose(rows, count=each))
    return Samples(tuple(shown), judged)


def _of_round(run: KeptRun, index: int, rows: Sequence[Judged]) -> list[Sample]:
    if not rows:
        return []
    videos = {row.video for row in rows}
    now, before = _contexts(run, index, videos), _contexts(run, index - 1, videos)
    if not now:  # a fixed context is round 1's for ever
        now, before = _contexts(run, 1, videos), {}
    return [Sample(run, index, row, before.get(row.video), now.get(row.video)) for row in rows]


def _contexts(run: KeptRun, index: int, videos: set[str]) -> dict[str, str]:
    return {row.video: row.context for row in run.contexts(index) or [] if row.video in videos}


def choose(rows: Sequence[Judged], *, count: int) -> list[Judged]:
    """At most `count` rows: about a third dropped ones, by turns from each reason; the preferred spread evenly from the
    surest choice to the closest call. Rows of videos not shown yet come first. The same rows give the same choice."""
    drawn = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    preferred = [row for row in drawn if row.outcome == "preferred"]
    dropped = _by_turns([row for row in drawn if row.outcome != "preferred"])
    wanted = min(len(dropped), max(count // 3, count - len(preferred)))
    return _spread(preferred, count - wanted) + sorted(dropped[:wanted], key=lambda row: row.outcome)


def _by_turns(rows: Sequence[Judged]) -> list[Judged]:
    reasons: dict[str, list[Judged]] = {}
    for row in rows:
        reasons.setdefault(row.outcome, []).append(row)
    queues = [reasons[name] for name in sorted(reasons)]
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _spread(rows: Sequence[Judged], count: int) -> list[Judged]:
    if len(rows) > count:
        fresh = list({row.video: row for row in reversed(rows)}.values())
        rows = fresh if len(fresh) >= count else rows
    surest_first = sorted(rows, key=lambda row: -abs((share(row) or 0.5) - 0.5))
    if len(surest_first) <= count:
        return surest_first
    places = np.linspace(0, len(surest_first) - 1, count).round().astype(int)
    return [surest_first[place] for place in places]


def share(row: Judged) -> float | None:
    """P(response 1 is better), averaged over the orders in which the labels have any mass; None where none has."""
    shares = [p / (p + q) for p, q in row.probabilities if p + q]
    return sum(shares) / len(shares) if shares else None
