"""What a run reads: the training rows, the evaluation sets, and the videos they name. All rows are checked before
anything is decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from isr_dpo import config
from isr_dpo.data import rows as row_files
from isr_dpo.data.captions import with_captions
from isr_dpo.data.clips import Library, fingerprint, may_be_same
from isr_dpo.data.rows import Located, TrainRow
from isr_dpo.errors import DataError
from isr_dpo.records import Preference, Question, TestRow


@dataclass(frozen=True)
class Sources:
    """The rows in file order, and where the videos lie."""

    questions: tuple[Question, ...]
    seeds: tuple[Preference, ...]
    """Of the training rows, those with `chosen` and `rejected`."""
    sets: Mapping[str, tuple[TestRow, ...]]
    videos: Mapping[str, str]
    """Every distinct `video` value, sorted: its path or s3:// URI (see `clips.Library`)."""
    identities: Mapping[str, str | None]
    """What tells a clip from another one; None where there is no such clip."""


R = TypeVar("R", TrainRow, TestRow)


class _Named(NamedTuple):
    location: str
    where: str
    """File and line of the first row that names the video."""


def read_sources(data: config.Data, *, captioned: Collection[str] = ()) -> Sources:
    """Reads and checks the recipe's rows. `video` lies in `data.videos`, or in the JSONL file's folder, or is absolute,
    or a URI: a video file, or frames (see `clips.Library`). `captioned` names the sets whose rows need captions.

    Raises:
        DataError: file and line of a row that is invalid JSON, lacks a key or a caption, has no video or repeats an id;
            a JSONL file that is missing, empty or not UTF-8; a `video` value that means different clips in two JSONL
            files, or may mean several.
    """
    library = Library()
    named: dict[str, _Named] = {}
    rows: list[TrainRow] = []
    if data.train:
        train = row_files.unique(row_files.read(data.train, TrainRow, key="data.train"))
        rows = _checked(train, data.train, named, library, data.videos)
    sets: dict[str, tuple[TestRow, ...]] = {}
    for name, uri in data.sets.items():
        asked: Iterable[Located[TestRow]] = row_files.unique(row_files.read(uri, TestRow, key=f"data.sets.{name}"))
        asked = with_captions(asked) if name in captioned else asked
        sets[name] = tuple(_checked(asked, uri, named, library, data.videos))
    _check_shared(named)
    videos = {video: named[video].location for video in sorted(named)}
    return Sources(
        questions=tuple(Question(id=row.id, video=row.video, prompt=row.prompt) for row in rows),
        seeds=tuple(_seed(row) for row in rows if row.chosen is not None),
        sets=sets,
        videos=videos,
        identities={video: library.identity(location) for video, location in videos.items()},
    )


def _checked(
    located: Iterable[Located[R]], uri: str, named: dict[str, _Named], library: Library, root: str | None
) -> list[R]:
    """The rows of the JSONL file `uri`; its videos are added to `named`."""
    rows: list[R] = []
    folder = uri.rpartition("/")[0]
    seen: set[str] = set()
    for row, where, _ in located:
        _check_pair(row, where)
        rows.append(row)
        if row.video in seen:
            continue
        seen.add(row.video)
        here = _Named(_locate(library, row.video, folder, root, where), where)
        there = named.setdefault(row.video, here)
        if there.location != here.location and not _same_clip(there.location, here.location):
            raise DataError(
                f"video {row.video!r} means {there.location} at {there.where} and {here.location} at {where}: "
                "different files need different names"
            )
    return rows


def _check_shared(named: Mapping[str, _Named]) -> None:
    """`data.videos` is searched by clip id: two sets may each have a clip 1, and one would be taken for both."""
    first: dict[str, str] = {}
    for video, (location, where) in named.items():
        other = first.setdefault(location, video)
        if not may_be_same(other, video):
            raise DataError(
                f"{where}: video {video!r} and {other!r} ({named[other].where}) both lead to {location}: keep the "
                "clips of one of them by their paths, in folders as in the rows"
            )


def _locate(library: Library, video: str, folder: str, root: str | None, where: str) -> str:
    try:
        return library.locate(video, folder=folder, root=root)
    except DataError as error:
        raise DataError(f"{where}: video {error}") from error


def _check_pair(row: TrainRow | TestRow, where: str) -> None:
    if isinstance(row, TrainRow) and (row.chosen is None) != (row.rejected is None):
        there, lacking = ("chosen", "rejected") if row.rejected is None else ("rejected", "chosen")
        raise DataError(f"{where}: row {row.id!r} has {there!r} without {lacking!r}; a seed preference has both")


def _seed(row: TrainRow) -> Preference:
    return Preference(answer="", **row.model_dump())


def _same_clip(one: str, other: str) -> bool:
    """Copies of one local clip count as the same."""
    if "://" in one or "://" in other:
        return False
    identities = [fingerprint(Path(path)) for path in (one, other)]
    return identities[0] is not None and identities[0] == identities[1]
