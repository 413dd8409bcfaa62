"""Which rows of a round are labelled, and in which order the two answers are shown.

The paper does not say how its rows were drawn (Table 4); this is ours [O]. A row takes part when it has two different
answers, whatever the judge made of it. The draw depends on the seed alone: every annotator gets the same rows in the
same sequence, and more rows only add to fewer. Which answer is shown first depends on the annotator too, or a liking
for the first place would pass as agreement between annotators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from isr_dpo.digests import canonical_digest
from isr_dpo.records import Judged, seed_for

Side = Literal[0, 1]


class Item(NamedTuple):
    """A row as it is shown: nothing of what the judge read or chose."""

    id: str
    video: str
    question: str
    answers: tuple[str, str]
    """As shown: the first is response `shown_first` of the row."""
    shown_first: Side

    def response(self, place: int) -> Side:
        """Which of the row's responses stands at `place` (0: first)."""
        return 1 if place != self.shown_first else 0


def sheet(judged: Sequence[Judged], *, rows: int, seed: int, annotator: str) -> list[Item]:
    """At most `rows` rows of a round to label, in the sequence in which they are shown."""
    drawn = sorted((row for row in judged if differs(row)), key=lambda row: seed_for(seed, "annotate", row.id))
    return [_item(row, seed_for(seed, "annotate", annotator, row.id) % 2) for row in drawn[:rows]]


def differs(row: Judged) -> bool:
    """Whether the row has two answers that are not the same."""
    first, second = (text.strip() for text in row.responses)
    return bool(first and second and first != second)


def rows_digest(judged: Sequence[Judged]) -> str:
    """sha256 over the ids, videos, questions and responses of a round: what a choice was a choice between."""
    return canonical_digest(sorted([row.id, row.video, row.prompt, *row.responses] for row in judged))


def _item(row: Judged, first: int) -> Item:
    shown = row.responses if first == 0 else (row.responses[1], row.responses[0])
    return Item(row.id, row.video, row.prompt, shown, 1 if first else 0)
