"""Rows of JSONL files, local or in S3, each with its file and line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import ConfigDict

from isr_dpo.errors import DataError
from isr_dpo.records import Identified, Published, Row, read_rows
from isr_dpo.stores import Missing, open_store
from isr_dpo.stores.local import to_path

R = TypeVar("R", bound=Row)
P = TypeVar("P", bound=Identified)


class Named(Row):
    """Any row that names a video."""

    video: str


class TrainRow(Published):
    """A training row as the loop reads it: keys beyond these, the ground truth `answer` first of all, are not even
    kept."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: str
    chosen: str | None = None
    rejected: str | None = None
    chosen_score: float | None = None
    rejected_score: float | None = None


class Located(NamedTuple, Generic[R]):
    """A row, and where it stands."""

    row: R
    where: str
    """File and line."""
    text: str
    """The line as it stands."""


def read(uri: str, row_type: type[R], *, key: str) -> Iterator[Located[R]]:
    """The rows of a JSONL file; `key` says in messages what named it.

    Raises:
        DataError: file and line of a row that is invalid JSON, lacks a key, has an empty video, or is not UTF-8; a file
            that is missing, or has no rows.
    """
    with _opened(uri, key=key) as path:
        lines = _Lines(path, uri)
        found = 0
        for row in read_rows(lines, row_type, where=uri):
            found += 1
            where = f"{uri}:{lines.number}"
            if getattr(row, "video", None) == "":
                raise DataError(f"{where}: row {getattr(row, 'id', found)!r} has an empty video")
            yield Located(row, where, lines.text)
    if not found:
        raise DataError(f"{key}: {uri} has no rows")


def unique(rows: Iterable[Located[P]]) -> Iterator[Located[P]]:
    """The same rows. Raises DataError where an id stands twice: files and lines of both."""
    first: dict[str, str] = {}
    for located in rows:
        before = first.setdefault(located.row.id, located.where)
        if before != located.where:
            raise DataError(f"{located.where}: id {located.row.id!r} stands at {before} already; an id names one row")
        yield located


@contextmanager
def _opened(uri: str, *, key: str) -> Iterator[Path]:
    """The file itself where it is local: a file of captions may have gigabytes."""
    if ("://" not in uri or uri.startswith("file://")) and to_path(uri).is_file():
        yield to_path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        try:
            open_store(uri).get(uri, path)
        except Missing:
            raise DataError(f"{key}: there is no {uri}") from None
        yield path


class _Lines:
    """The lines of a file, with the number and the text of the one last handed out."""

    def __init__(self, path: Path, uri: str) -> None:
        self.number = 0
        self.text = ""
        self._path = path
        self._uri = uri

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as stream:  # bytes: other line separators may stand inside JSON strings
            for self.number, line in enumerate(stream, start=1):
                try:
                    self.text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(f"{self._uri}:{self.number}: not UTF-8 text") from error
                yield self.text
