"""A dozen judged rows to look at, chosen by a rule and not by hand: the judge's surest choices, its closest calls, and
some of every reason for which a row was dropped."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from isr_dpo.records import Judged

COUNT = 12
TINY_PIXELS = 96
"""Frames up to this side are shown pixel by pixel, larger ones as thumbnails."""
THUMBNAIL_PIXELS = 224
MAX_FRAMES = 8


class Word(NamedTuple):
    """A run of words, and what refinement did to it."""

    text: str
    mark: Literal["", "added", "removed"]


class Order(NamedTuple):
    """One order in which the judge was asked: probabilities of the labels, as read; `first` is the response shown
    first."""

    first: int
    probabilities: tuple[float, float]
    share: float
    """P(response 1 is better), the two labels normalised; 0.5 where both are zero."""


@dataclass(frozen=True)
class Sample:
    """A judged row with what the judge saw."""

    row: Judged
    before: str | None
    """Own description of the round before, c_(t-1)."""
    after: str | None
    """Own description of this round, c_t."""
    frames: tuple[str, ...]
    """Data URIs; empty where the frames are not at hand."""
    tiny: bool

    @property
    def orders(self) -> list[Order]:
        return [
            Order(number, (p, q), p / (p + q) if p + q else 0.5)
            for number, (p, q) in enumerate(self.row.probabilities, start=1)
        ]

    @property
    def share(self) -> float | None:
        """P(response 1 is better), averaged over the orders."""
        return _share(self.row)

    @property
    def borrowed(self) -> str | None:
        """The description that the judge read, where it is another video's."""
        read = self.row.context
        return read if read is not None and self.after is not None and read != self.after else None

    @property
    def changes(self) -> tuple[list[Word], list[Word]]:
        """`before` and `after` word by word, the differences marked."""
        return differences(self.before or "", self.after or "")


def choose(rows: Sequence[Judged], *, count: int = COUNT) -> list[Judged]:
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
    surest_first = sorted(rows, key=lambda row: -abs((_share(row) or 0.5) - 0.5))
    if len(surest_first) <= count:
        return surest_first
    places = np.linspace(0, len(surest_first) - 1, count).round().astype(int)
    return [surest_first[place] for place in places]


def _share(row: Judged) -> float | None:
    shares = [p / (p + q) for p, q in row.probabilities if p + q]
    return sum(shares) / len(shares) if shares else None


def sample(row: Judged, *, now: Mapping[str, str], before: Mapping[str, str], frames: np.ndarray | None) -> Sample:
    """`row` with its descriptions by video and its frames, uint8 [F, H, W, 3]."""
    return Sample(
        row=row,
        before=before.get(row.video),
        after=now.get(row.video),
        frames=tuple(_data_uri(frame) for frame in _some(frames)) if frames is not None else (),
        tiny=frames is not None and max(frames.shape[1:3]) <= TINY_PIXELS,
    )


def _some(frames: np.ndarray) -> np.ndarray:
    if len(frames) <= MAX_FRAMES:
        return frames
    return frames.take(np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int), axis=0)


def _data_uri(frame: np.ndarray) -> str:
    image, buffer = Image.fromarray(frame), io.BytesIO()
    if max(image.size) <= TINY_PIXELS:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
        image.save(buffer, "WEBP", quality=75)
        kind = "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def differences(before: str, after: str) -> tuple[list[Word], list[Word]]:
    """Both texts cut into runs of words: what stayed, what was removed, what was added."""
    old, new = before.split(), after.split()
    left, right = [], []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        same = kind == "equal"
        if a < b:
            left.append(Word(" ".join(old[a:b]), "" if same else "removed"))
        if c < d:
            right.append(Word(" ".join(new[c:d]), "" if same else "added"))
    return left, right
