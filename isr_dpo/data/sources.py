"""What a run reads: the training rows, the evaluation sets, and the video files they name. All rows are checked before
anything is decoded."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ConfigDict

from isr_dpo import config
from isr_dpo.errors import DataError
from isr_dpo.records import Preference, Question, TestRow, read_rows
from isr_dpo.stores import Missing, join, open_store, read_bytes

_ENDS_BYTES = 64 * 1024


class TrainRow(Question):
    """A training row as we read it: keys beyond these, the ground truth `answer` first of all, are not even kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    chosen: str | None = None
    rejected: str | None = None
    chosen_score: float | None = None
    rejected_score: float | None = None


@dataclass(frozen=True)
class Sources:
    """The rows in file order, and where the videos lie."""

    questions: tuple[Question, ...]
    seeds: tuple[Preference, ...]
    """Of the training rows, those with `chosen` and `rejected`."""
    sets: Mapping[str, tuple[TestRow, ...]]
    videos: Mapping[str, str]
    """Every distinct `video` value, sorted: its path or s3:// URI."""
    identities: Mapping[str, str | None]
    """What tells a video file from another one (see `identify`); None where there is no such file."""


R = TypeVar("R", TrainRow, TestRow)


class _Named(NamedTuple):
    location: str
    where: str
    """File and line of the first row that names the video."""


def read_sources(data: config.Data) -> Sources:
    """Reads and checks the recipe's rows; `video` is relative to the JSONL file's folder, or absolute, or a URI.

    Raises:
        DataError: file and line of a row that is invalid JSON, lacks a key, has no video or repeats an id; a JSONL file
            that is missing, empty or not UTF-8; a `video` value that means different files in two JSONL files.
    """
    named: dict[str, _Named] = {}
    rows = _read(data.train, TrainRow, named, key="data.train")
    sets = {name: tuple(_read(uri, TestRow, named, key=f"data.sets.{name}")) for name, uri in data.sets.items()}
    videos = {video: named[video].location for video in sorted(named)}
    return Sources(
        questions=tuple(Question(id=row.id, video=row.video, prompt=row.prompt) for row in rows),
        seeds=tuple(_seed(row) for row in rows if row.chosen is not None),
        sets=sets,
        videos=videos,
        identities=identify(videos),
    )


def identify(videos: Mapping[str, str]) -> dict[str, str | None]:
    """Tells each file from another one without reading it whole; None where it is missing.

    Local files: SHA-256 over the size and the first and last 64 KiB, where containers keep their headers and indexes
    [O]: hashing terabytes at every start would cost more than it finds. Objects in S3: the size.
    """
    listed: dict[str, dict[str, int]] = {}
    found: dict[str, str | None] = {}
    for video, location in videos.items():
        if "://" not in location:
            found[video] = _fingerprint(Path(location))
            continue
        folder, _, name = location.rpartition("/")
        if folder not in listed:
            listed[folder] = open_store(folder).list(folder)
        size = listed[folder].get(name)
        found[video] = None if size is None else f"size {size}"
    return found


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """The video as a local file: itself, or fetched for as long as the context lasts. Raises Missing."""
    if "://" not in location:
        yield Path(location)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        open_store(location).get(location, path)
        yield path


def _read(uri: str, row_type: type[R], named: dict[str, _Named], *, key: str) -> list[R]:
    """The rows of a JSONL file; its videos are added to `named`."""
    rows: list[R] = []
    first: dict[str, str] = {}
    lines = _Counted(_lines(uri, key=key))
    folder = uri.rpartition("/")[0]
    for row in read_rows(lines, row_type, where=uri):
        where = f"{uri}:{lines.number}"
        if row.id in first:
            raise DataError(f"{where}: id {row.id!r} stands at {first[row.id]} already; an id names one row")
        first[row.id] = where
        _check_row(row, where)
        here = _Named(_locate(folder, row.video), where)
        there = named.setdefault(row.video, here)
        if there.location != here.location and not _same_file(there.location, here.location):
            raise DataError(
                f"video {row.video!r} means {there.location} at {there.where} and {here.location} at {where}: "
                "different files need different names"
            )
        rows.append(row)
    if not rows:
        raise DataError(f"{key}: {uri} has no rows")
    return rows


def _check_row(row: TrainRow | TestRow, where: str) -> None:
    if not row.video:
        raise DataError(f"{where}: row {row.id!r} has an empty video")
    if isinstance(row, TrainRow) and (row.chosen is None) != (row.rejected is None):
        there, lacking = ("chosen", "rejected") if row.rejected is None else ("rejected", "chosen")
        raise DataError(f"{where}: row {row.id!r} has {there!r} without {lacking!r}; a seed preference has both")


def _seed(row: TrainRow) -> Preference:
    return Preference(answer="", **row.model_dump())


def _lines(uri: str, *, key: str) -> list[str]:
    try:
        content = read_bytes(uri)
    except Missing:
        raise DataError(f"{key}: there is no {uri}") from None
    try:
        return content.decode("utf-8-sig").split("\n")  # not splitlines: JSON strings may hold other line separators
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{uri}:{line}: not UTF-8 text") from error


class _Counted:
    """Lines, and the number of the one last handed out."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.number = 0
        self._lines = lines

    def __iter__(self) -> Iterator[str]:
        for self.number, line in enumerate(self._lines, start=1):  # noqa: B020 - the attribute is the point
            yield line


def _locate(folder: str, video: str) -> str:
    if "://" in video:
        return os.path.normpath(video.removeprefix("file://")) if video.startswith("file://") else video
    if "://" in folder and not folder.startswith("file://"):
        return join(folder, video)
    return os.path.normpath(os.path.join(folder.removeprefix("file://"), video))


def _same_file(one: str, other: str) -> bool:
    """Copies of one local file count as the same."""
    if "://" in one or "://" in other:
        return False
    identities = [_fingerprint(Path(path)) for path in (one, other)]
    return identities[0] is not None and identities[0] == identities[1]


def _fingerprint(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.sha256(f"{size}\n".encode() + stream.read(_ENDS_BYTES))
            stream.seek(max(_ENDS_BYTES, size - _ENDS_BYTES))
            digest.update(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.strerror}"  # no permission, a folder: decoding says so, the identity changes when it is mended
    return digest.hexdigest()
