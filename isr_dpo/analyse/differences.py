"""Two texts word by word: what stayed, what was removed, what was added."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Words:
    """A run of words, and what became of it."""

    text: str
    mark: Literal["", "added", "removed"] = ""


class Difference(NamedTuple):
    """Both texts cut into runs: `before` has kept and removed ones, `after` kept and added ones."""

    before: tuple[Words, ...]
    after: tuple[Words, ...]


def difference(before: str, after: str) -> Difference:
    """The runs of words of both texts, words being what stands between blanks."""
    old, new = before.split(), after.split()
    left: list[Words] = []
    right: list[Words] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same = kind == "equal"
        if a < b:
            left.append(Words(" ".join(old[a:b]), "" if same else "removed"))
        if c < d:
            right.append(Words(" ".join(new[c:d]), "" if same else "added"))
    return Difference(tuple(left), tuple(right))


def changes(before: str | None, after: str) -> tuple[Words, ...]:
    """`after` in runs, those that `before` has not marked as added; nothing is marked where there is no `before`."""
    if before is None:
        return (Words(" ".join(after.split())),) if after.split() else ()
    return difference(before, after).after
