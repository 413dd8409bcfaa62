"""Choices, kept where a kill cannot lose them: <run>/analysis/choices-round-TT-<annotator>.jsonl.

A line a choice, in the sequence in which they were made; of a row that was labelled again the last line counts, the
earlier ones stay. On a local disk a line is appended and synced; in an object store, which cannot append, the object is
replaced whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from isr_dpo import layout, manifest
from isr_dpo.annotate.sheet import Side
from isr_dpo.errors import RecipeError
from isr_dpo.records import Row, read_rows
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes
from isr_dpo.stores.local import explain

Outcome = Literal["preferred", "tie", "unclear"]
ORACLE = "oracle"
PEOPLE = "people"
"""Several of them together."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Choice(Row):
    """A label. `choice` is the better of the row's responses, 0 or 1, where one was preferred; `unclear` says that it
    cannot be told."""

    id: str
    video: str
    round: int
    annotator: str
    """A person's name, or `oracle:<grader>`."""
    shown_first: Side
    """The response that stood first."""
    choice: Side | None = None
    outcome: Outcome
    seconds: float
    """For which the row was looked at."""
    rows_digest: str
    """Of the round's rows (`sheet.rows_digest`)."""


class ChoiceLog:
    """The choices at `uri`. Safe to use from several threads."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._standing = {choice.id: choice for choice in _read(uri)}

    @property
    def standing(self) -> Mapping[str, Choice]:
        """The last choice of each row, by id."""
        with self._lock:
            return dict(self._standing)

    def add(self, *choices: Choice) -> int:
        """Keeps what is new of `choices`, durably on return, and says how many. What stands already is not written
        again.

        Raises:
            StoreError: the disk is full, or may not be written.
            OutsideError: the store stays away.
        """
        with self._lock:
            new = [choice for choice in choices if _said(choice) != _said(self._standing.get(choice.id))]
            if new:
                append(self.uri, new)
                self._standing |= {choice.id: choice for choice in new}
            return len(new)


def _said(choice: Choice | None) -> tuple[object, ...] | None:
    return None if choice is None else (choice.annotator, choice.outcome, choice.choice, choice.rows_digest)


def append(uri: str, choices: Iterable[Choice]) -> None:
    """Adds lines to the file at `uri`, durably. What a kill left of a line is removed first."""
    lines = "".join(choice.model_dump_json() + "\n" for choice in choices).encode()
    if manifest.local_folder(uri) is None:
        write_bytes(uri, _whole_lines(_bytes(uri)) + lines)
        return
    path = Path(uri.removeprefix("file://"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, lines)
    except OSError as error:
        explain(error, uri)


def _append(path: Path, lines: bytes) -> None:
    new = not path.exists()
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # two pages of one annotator
        file.seek(0)
        content = file.read()
        file.truncate(len(_whole_lines(content)))
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_all(run_uri: str, index: int) -> dict[str, list[Choice]]:
    """The standing choices of a round by annotator, in the sequence of their first labelling.

    Raises:
        DataError: a line is no choice, with file and line.
    """
    folder = join(run_uri, "analysis")
    names = [name for name in open_store(run_uri).list(folder) if name.startswith(layout.choices_prefix(index))]
    by_annotator: dict[str, dict[str, Choice]] = {}
    for name in names:
        for choice in _read(join(folder, name)):
            by_annotator.setdefault(choice.annotator, {})[choice.id] = choice
    return {annotator: list(choices.values()) for annotator, choices in sorted(by_annotator.items())}


def checked_name(annotator: str) -> str:
    """`annotator`, if a person may be called so. Raises RecipeError."""
    if not _NAME.fullmatch(annotator) or annotator.lower().startswith(ORACLE) or annotator == PEOPLE:
        raise RecipeError(
            f"--annotator {annotator!r}: accepted: letters, digits, '.', '_' and '-', at most 64; not {PEOPLE!r}, and "
            f"no name that begins with {ORACLE!r}"
        )
    return annotator


def _read(uri: str) -> list[Choice]:
    lines = _whole_lines(_bytes(uri)).decode(errors="replace").split("\n")
    return list(read_rows(lines, Choice, where=uri))


def _bytes(uri: str) -> bytes:
    try:
        return read_bytes(uri)
    except Missing:
        return b""


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
