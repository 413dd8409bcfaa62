"""Choices by the grader, who knows the ground truth: an oracle in a person's stead [O].

Each pair is asked in both orders by the protocol `win-rate`: which of the two answers is nearer the truth. The training
rows' truth is never kept in a run, so it is read from their file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from isr_dpo.analyse.asking import Bill, bill
from isr_dpo.analyse.win_rate_protocol import Nearer, WinRateProtocol
from isr_dpo.annotate.choices import ORACLE, Choice, Outcome
from isr_dpo.annotate.sheet import Item, Side, rows_digest, sheet
from isr_dpo.data import rows as row_files
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Progress, Reply
from isr_dpo.evaluate.protocol import Task
from isr_dpo.records import Judged, Row


class Truth(Row):
    """The ground truth of a training row."""

    id: str
    answer: str


@dataclass(frozen=True)
class Told:
    """What the oracle chose, and what that cost."""

    choices: tuple[Choice, ...]
    bill: Bill


def name_of(grader: Grader) -> str:
    """Whom the choices are by: `oracle:<grader>`, a model by its own name."""
    return f"{ORACLE}:{grader.model or grader.name}"


def choose(
    judged: Sequence[Judged],
    truths: Mapping[str, str],
    grader: Grader,
    *,
    round_index: int,
    rows: int,
    seed: int,
    progress: Progress = lambda _: None,
) -> Told:
    """The oracle's choices on the rows that people label too. Orders that disagree are a tie, a reply that cannot be
    read is unclear. `progress` counts comparisons, two a row.

    Raises:
        DataError: a row has no truth.
        OutsideError: the grader stays away; what it has said stands in the ledger, so run again.
    """
    annotator, protocol = name_of(grader), WinRateProtocol()
    items = sheet(judged, rows=rows, seed=seed, annotator=annotator)
    lost = [item.id for item in items if item.id not in truths]
    if lost:
        raise DataError(f"{len(lost)} of {len(items)} rows have no ground truth, the first is {lost[0]!r}")
    replies = grader.grade(protocol, [task for item in items for task in _tasks(item, truths[item.id])], progress)
    digest = rows_digest(judged)
    choices = []
    for number, item in enumerate(items):
        outcome, choice = _chosen(item, replies[2 * number : 2 * number + 2], protocol)
        choices.append(
            Choice(
                id=item.id,
                video=item.video,
                round=round_index,
                annotator=annotator,
                shown_first=item.shown_first,
                choice=choice,
                outcome=outcome,
                seconds=0.0,
                rows_digest=digest,
            )
        )
    return Told(tuple(choices), bill(replies))


def read_truths(uri: str) -> dict[str, str]:
    """The truths of a training file in the published schema, by row id.

    Raises:
        DataError: no such file, or a line without `id` or `answer`, with file and line.
    """
    return {found.row.id: found.row.answer for found in row_files.read(uri, Truth, key="--truth")}


def _tasks(item: Item, truth: str) -> tuple[Task, Task]:
    first, second = item.answers
    return (
        Task(question=item.question, truth=truth, prediction=first, other=second),
        Task(question=item.question, truth=truth, prediction=second, other=first),
    )


def _chosen(item: Item, replies: Sequence[Reply], protocol: WinRateProtocol) -> tuple[Outcome, Side | None]:
    said: list[Nearer | None] = [None if r.failure is not None else protocol.read(r.text) for r in replies]
    if None in said:
        return "unclear", None
    if said == ["prediction", "other"]:
        return "preferred", item.response(0)
    if said == ["other", "prediction"]:
        return "preferred", item.response(1)
    return "tie", None
