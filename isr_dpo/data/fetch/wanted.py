"""The clips that rows name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo.data import rows as row_files
from isr_dpo.data.clips import clip_id, may_be_same
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError


class Wanted(NamedTuple):
    """Of a clip: what the first row calls it, where that stands, and how many rows need it."""

    video: str
    where: str
    rows: int


def wanted_clips(uris: Sequence[str]) -> dict[str, Wanted]:
    """Clip id -> who wants it.

    Raises:
        DataError: file and line of a row without a video, or whose video has another's clip id: `a/x` and `b/x`, which
            would lie at one place.
    """
    found: dict[str, Wanted] = {}
    for uri in uris:
        for row, where, _ in row_files.read(uri, row_files.Named, key="--rows"):
            clip = clip_id(row.video)
            if clip in ("", ".", ".."):
                raise DataError(f"{where}: {row.video!r} names no clip")
            first = found.setdefault(clip, Wanted(row.video, where, 0))
            if not may_be_same(first.video, row.video):
                raise DataError(
                    f"{where}: {row.video!r} and {first.video!r} ({first.where}) have one clip id, {clip!r}: fetch the "
                    "clips of these files to folders of their own"
                )
            found[clip] = first._replace(rows=first.rows + 1)
    return found


def digest(wanted: dict[str, Wanted]) -> str:
    """Of the clips alone."""
    return canonical_digest(sorted(wanted))
