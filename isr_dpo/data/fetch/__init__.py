"""Published archives of clips -> the clips that rows name, in a store, each as one object.

    wanted = wanted_clips(rows)          wanted.py    clip ids
    chunks = find_chunks(source)         chunks.py    a folder's, a bucket's, a server's (http.py) or a hub's (hub.py)
    clips(chunk)                         archive.py   read as a stream: nothing but the clip in hand is on this machine
    <dest>/<clip id>.tar | .mp4 ...      atomically; <dest>/.fetch/ remembers the chunks that are done (marks.py)

Killed at any moment, the same call goes on: chunks that are done are not read again, clips that stand are not stored
again, and what stands is whole.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from isr_dpo.data.clips import FRAMES_TAR, VIDEOS, clip_id, may_be_same
from isr_dpo.data.fetch import archive, marks
from isr_dpo.data.fetch.archive import Packed, Scattered
from isr_dpo.data.fetch.chunks import Chunk, Opened, find_chunks
from isr_dpo.data.fetch.marks import Mark
from isr_dpo.data.fetch.wanted import Wanted, digest, wanted_clips
from isr_dpo.errors import DataError, IsrDpoError, OutsideError
from isr_dpo.progress import Progress
from isr_dpo.records import to_jsonl
from isr_dpo.stores import join, open_store, write_bytes

MISSING = "missing.jsonl"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk."""

    chunk: str
    state: Literal["read", "stands", "not needed", "failed"]
    """`stands`: it was read before; `not needed`: all clips stand already."""
    clips: int = 0
    """Wanted ones that it holds, as far as it was read."""
    stored: int = 0
    """Of these, now."""
    read_bytes: int = 0
    failure: IsrDpoError | None = None


@dataclass(frozen=True)
class Fetched:
    """What became of the call."""

    outcomes: tuple[Outcome, ...]
    wanted: int
    missing: tuple[str, ...]
    """Clip ids."""


def fetch(source: str, dest: str, *, rows: Sequence[str], chunks: Sequence[str] = (), workers: int = 2) -> Fetched:
    """Brings the clips that the files `rows` name from the archives of `source` to `dest`; `workers` archives at once.

    A chunk that fails costs the others nothing. `<dest>/missing.jsonl` lists the clips that are in none.

    Raises:
        DataError, RecipeError: of the rows or the source, before anything is fetched; rows that mean other clips than
            those that stand by their ids.
        StoreError: `dest` refuses, or the local disk is full.
    """
    wanted = wanted_clips(rows)
    found = find_chunks(source, chunks)
    _check_origins(dest, wanted)
    standing = {clip_id(name.partition("/")[0]) for name in open_store(dest).list(dest)}
    log.info(
        "fetch: %d clips wanted, %d of them stand; %d chunks", len(wanted), len(standing & wanted.keys()), len(found)
    )
    outcomes = _Fetch(dest, wanted, standing).all(found, workers)
    missing = tuple(sorted(wanted.keys() - standing))
    listed = ({"clip": clip, **wanted[clip]._asdict()} for clip in missing)
    write_bytes(join(dest, MISSING), to_jsonl(listed))
    return Fetched(tuple(outcomes), len(wanted), missing)


def _check_origins(dest: str, wanted: Mapping[str, Wanted]) -> None:
    for clip, video in marks.origins(dest).items():
        if clip in wanted and not may_be_same(video, wanted[clip].video):
            raise DataError(
                f"{wanted[clip].where}: {wanted[clip].video!r} has the clip id {clip!r} of {video!r}, which was "
                f"fetched to {dest} before: fetch these rows' clips to a folder of their own"
            )


class _Stopped(Exception):
    """Another chunk met what stops all."""


class _Fetch:
    def __init__(self, dest: str, wanted: dict[str, Wanted], standing: set[str]) -> None:
        self._dest, self._wanted, self._standing = dest, wanted, standing
        self._digest = digest(wanted)
        self._left = set(wanted) - standing
        self._stop = threading.Event()
        self._progress = Progress("fetch", len(self._left), "clips")

    def all(self, chunks: Sequence[Chunk], workers: int) -> list[Outcome]:
        """Outcomes in the order of the chunks."""
        pool = ThreadPoolExecutor(workers, thread_name_prefix="fetch")
        running = {pool.submit(self._one, chunk): number for number, chunk in enumerate(chunks)}
        done: dict[int, Outcome] = {}
        try:
            for future in as_completed(running):
                with contextlib.suppress(_Stopped):  # another's error says why
                    done[running[future]] = future.result()
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)
        return [done[number] for number in range(len(chunks))]

    def _one(self, chunk: Chunk) -> Outcome:
        if self._stop.is_set():
            raise _Stopped
        try:
            return self._chunk(chunk)
        except (DataError, OutsideError) as error:
            if isinstance(error, Scattered):
                self._withdraw(error.clip)
            log.warning("fetch: %s failed: %s", chunk.name, error)
            return Outcome(chunk.name, "failed", failure=error)
        except BaseException:
            self._stop.set()
            raise

    def _chunk(self, chunk: Chunk) -> Outcome:
        mark = marks.find(self._dest, chunk)
        if mark is None and not self._left:
            return Outcome(chunk.name, "not needed")
        opened = chunk.open()
        with opened.raw:
            renews = mark is not None and (mark.identity != opened.identity or (mark.renews and not mark.complete))
            if mark and not renews:
                if mark.complete and mark.wanted == self._digest and self._standing.issuperset(mark.clips):
                    return Outcome(chunk.name, "stands", clips=len(mark.clips))
                if mark.complete and not self._left:
                    return Outcome(chunk.name, "not needed", clips=len(mark.clips))
            before = mark.clips if mark and not renews else {}
            begun = Mark(place=chunk.place, identity=opened.identity, wanted=self._digest, renews=renews, clips=before)
            marks.write(self._dest, chunk, begun)
            try:
                return self._read(chunk, opened, begun)
            except DataError:  # what it brought is not to be trusted: once it is mended, all of it is replaced
                marks.write(self._dest, chunk, begun.model_copy(update={"renews": True}))
                raise

    def _read(self, chunk: Chunk, opened: Opened, begun: Mark) -> Outcome:
        held: set[str] = set()
        stored = 0
        started = time.monotonic()

        def needs(clip: str) -> bool:
            held.add(clip)
            return begun.renews or clip not in self._standing

        with tempfile.TemporaryDirectory() as scratch:
            for packed in archive.clips(
                opened.raw,
                place=chunk.place,
                wanted=self._wanted,
                needs=needs,
                scratch=Path(scratch),
                tick=self._tick,
            ):
                self._store(packed)
                stored += 1
        # The longer path says more of which clip it is.
        named = {clip: max(begun.clips.get(clip, ""), self._wanted[clip].video, key=len) for clip in sorted(held)}
        clips = {**begun.clips, **named}
        marks.write(self._dest, chunk, begun.model_copy(update={"complete": True, "clips": clips}))
        size, seconds = opened.raw.tell(), time.monotonic() - started
        log.info("fetch: %s: %d clips stored, %.2f GB read in %.0f s", chunk.name, stored, size / 1e9, seconds)
        return Outcome(chunk.name, "read", clips=len(clips), stored=stored, read_bytes=size)

    def _withdraw(self, clip: str) -> None:
        for suffix in (FRAMES_TAR, *VIDEOS):
            uri = join(self._dest, clip + suffix)
            open_store(uri).delete(uri)
        self._standing.discard(clip)
        self._left.add(clip)

    def _store(self, packed: Packed) -> None:
        open_store(self._dest).put(packed.path, join(self._dest, packed.name))
        self._progress(1 if packed.clip in self._left else 0)
        self._standing.add(packed.clip)
        self._left.discard(packed.clip)

    def _tick(self) -> None:
        if self._stop.is_set():
            raise _Stopped
        self._progress(0)
