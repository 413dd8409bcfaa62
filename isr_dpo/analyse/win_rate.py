"""Two systems' answers to the same questions, head to head: which is nearer the ground truth (Figure 6).

Each pair is asked in both orders. An answer wins where it is named in both; anything else is a tie, as in Yuan et al.
(2024), whom the paper follows. Equal answers are a tie that nobody is asked about [O]. A pair is *unscored*, neither
won nor lost, where a model gave no answer or either order's reply cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isr_dpo.analyse.asking import Bill, answers, bill, questions, who
from isr_dpo.analyse.compared import System
from isr_dpo.analyse.estimate import Estimate, mean
from isr_dpo.analyse.runs import GraderInfo
from isr_dpo.analyse.win_rate_protocol import WinRateProtocol
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Reply
from isr_dpo.evaluate.protocol import Task
from isr_dpo.records import TestRow

Outcome = Literal["first", "second", "tie", "unscored"]
IDENTICAL = "the answers are equal"
INCONSISTENT = "the two orders disagree"


@dataclass(frozen=True)
class Side:
    """One of the two systems."""

    label: str
    run: str
    uri: str
    policy: int
    context: str


@dataclass(frozen=True)
class Pair:
    """A question with both answers."""

    set: str
    id: str
    video: str
    question: str
    truth: str
    first: str | None
    """None: the model could not be asked."""
    second: str | None
    outcome: Outcome
    why: str
    """Of a tie or an unscored pair."""
    replies: tuple[str, ...]
    """The grader's: with the first system's answer shown first, and second."""


@dataclass(frozen=True)
class SetWins:
    """One evaluation set. Shares are of the scored pairs, None where there is none."""

    set: str
    wins: int
    """Of the first system."""
    losses: int
    ties: int
    unscored: int
    identical: int
    """Of the ties."""
    inconsistent: int
    """Of the ties: the two orders disagree, as they would with a grader that reads the order and not the answers."""
    win_share: Estimate | None
    loss_share: Estimate | None
    tie_share: Estimate | None
    lead: Estimate | None
    """Share won less share lost."""
    words: Estimate | None
    """Of the first system's answers, mean."""
    other_words: Estimate | None


@dataclass(frozen=True)
class WinRate:
    """The first system against the second."""

    first: Side
    second: Side
    grader: GraderInfo
    limit: int | None
    """Questions drawn a set; None: all."""
    seed: int
    bill: Bill
    made_from: Mapping[str, str]
    """Digests of both systems' answers, by `first/<set>` and `second/<set>`."""
    sets: tuple[SetWins, ...]
    rows: tuple[Pair, ...]
    kind: Literal["win-rate"] = "win-rate"


def win_rate(
    first: System,
    second: System,
    grader: Grader,
    *,
    sets: Sequence[str],
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> WinRate:
    """Asks `grader` about every pair of answers to the sets `sets`, or about `limit` questions a set drawn by `seed`.

    Raises:
        DataError: a system has not answered a set, or the two were asked different questions.
        OutsideError: the grader stays away; what it has said stands in the ledger, so run again.
    """
    protocol = WinRateProtocol()
    asked = [pair for name in sets for pair in _pairs(first, second, name, limit=limit, seed=seed)]
    open_pairs = [pair for pair in asked if pair.first is not None and pair.second is not None and not pair.equal]
    progress(2 * (len(asked) - len(open_pairs)))
    replies = grader.grade(protocol, [task for pair in open_pairs for task in pair.tasks], progress)
    said = {(p.set, p.row.id): (replies[2 * i], replies[2 * i + 1]) for i, p in enumerate(open_pairs)}
    rows = [_judged(pair, said.get((pair.set, pair.row.id)), protocol) for pair in asked]
    return WinRate(
        first=_side(first),
        second=_side(second),
        grader=who(grader, protocol, replies),
        limit=limit,
        seed=seed,
        bill=bill(replies),
        made_from={
            f"{which}/{name}": side.run.digest(side.run.answers_uri(side.policy, name))
            for which, side in (("first", first), ("second", second))
            for name in sets
        },
        sets=tuple(measure([row for row in rows if row.set == name], name) for name in sets),
        rows=tuple(rows),
    )


def _side(system: System) -> Side:
    run = system.run
    return Side(system.label, run.name, run.uri, system.policy, run.context)


def measure(rows: Sequence[Pair], name: str) -> SetWins:
    """The figures of one set's pairs."""
    scored = [row for row in rows if row.outcome != "unscored"]
    videos = [row.video for row in scored]

    def share(value: Callable[[Pair], float], low: float = 0.0) -> Estimate | None:
        return mean([value(row) for row in scored], videos, within=(low, 1.0))

    def words(of: Callable[[Pair], str | None]) -> Estimate | None:
        said = [(text, row.video) for row in rows if (text := of(row)) is not None]
        return mean([float(len(text.split())) for text, _ in said], [video for _, video in said])

    counts = {
        outcome: sum(row.outcome == outcome for row in rows) for outcome in ("first", "second", "tie", "unscored")
    }
    return SetWins(
        set=name,
        wins=counts["first"],
        losses=counts["second"],
        ties=counts["tie"],
        unscored=counts["unscored"],
        identical=sum(row.why == IDENTICAL for row in rows),
        inconsistent=sum(row.why == INCONSISTENT for row in rows),
        win_share=share(lambda row: float(row.outcome == "first")),
        loss_share=share(lambda row: float(row.outcome == "second")),
        tie_share=share(lambda row: float(row.outcome == "tie")),
        lead=share(lambda row: float(row.outcome == "first") - float(row.outcome == "second"), -1.0),
        words=words(lambda row: row.first),
        other_words=words(lambda row: row.second),
    )


@dataclass(frozen=True)
class _Asked:
    set: str
    row: TestRow
    first: str | None
    second: str | None

    @property
    def equal(self) -> bool:
        return self.first is not None and self.second is not None and self.first.split() == self.second.split()

    @property
    def tasks(self) -> tuple[Task, Task]:
        """In both orders."""
        return self._task(self.first or "", self.second or ""), self._task(self.second or "", self.first or "")

    def _task(self, shown_first: str, shown_second: str) -> Task:
        row = self.row
        return Task(
            question=row.question,
            truth=row.answer,
            caption=row.caption or "",
            prediction=shown_first,
            other=shown_second,
        )


def _pairs(first: System, second: System, name: str, *, limit: int | None, seed: int) -> list[_Asked]:
    rows = questions(first.run, name, limit=limit, seed=seed)
    if first.run.set_digest(name) != second.run.set_digest(name):
        raise DataError(
            f"set {name}: {first.run.uri} and {second.run.uri} were asked different questions; "
            "answers are compared to the same ones alone"
        )
    of_first, of_second = answers(first.run, first.policy, name), answers(second.run, second.policy, name)
    return [_Asked(name, row, of_first[row.id], of_second[row.id]) for row in rows]


def _judged(asked: _Asked, replies: tuple[Reply, Reply] | None, protocol: WinRateProtocol) -> Pair:
    outcome, why = _outcome(asked, replies, protocol)
    return Pair(
        set=asked.set,
        id=asked.row.id,
        video=asked.row.video,
        question=asked.row.question,
        truth=asked.row.answer,
        first=asked.first,
        second=asked.second,
        outcome=outcome,
        why=why,
        replies=() if replies is None else tuple(reply.failure or reply.text for reply in replies),
    )


def _outcome(asked: _Asked, replies: tuple[Reply, Reply] | None, protocol: WinRateProtocol) -> tuple[Outcome, str]:
    if replies is None:
        return ("tie", IDENTICAL) if asked.equal else ("unscored", "a model could not be asked")
    failed = [reply.failure for reply in replies if reply.failure is not None]
    if failed:
        return "unscored", failed[0]
    straight, swapped = (protocol.read(reply.text) for reply in replies)
    if straight is None or swapped is None:
        return "unscored", "the grader's reply is not in the asked form"
    if (straight, swapped) == ("prediction", "other"):
        return "first", ""
    if (straight, swapped) == ("other", "prediction"):
        return "second", ""
    return "tie", "" if straight == swapped == "tie" else INCONSISTENT
