"""The clips of a tar that is read as a stream, once, from its first byte to its last; one clip at a time is held."""

from __future__ import annotations

import contextlib
import gzip
import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from isr_dpo.data.clips import FRAMES_TAR, VIDEOS, clip_id, is_frame
from isr_dpo.errors import DataError, IsrDpoError, StoreError

MAX_CLIP_BYTES = 8 << 30
"""A clip that has more is no clip [O]; it has to fit on the local disk while it travels."""
_MAX_HEADER_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 10
_GZIP = b"\x1f\x8b"
_LONG_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Packed(NamedTuple):
    """A clip as it goes to the store."""

    clip: str
    name: str
    """`<clip id>.tar` of frames, or `<clip id>.mp4` and so on."""
    path: Path
    """Its content, until the next clip is asked for."""


class Scattered(DataError):
    """A clip lies in two places of an archive: what was packed of it is not all, or not the one."""

    def __init__(self, place: str, clip: str) -> None:
        super().__init__(f"{place}: clip {clip!r} lies in two places of the archive; no telling which is right")
        self.clip = clip


def clips(
    raw: io.RawIOBase,
    *,
    place: str,
    wanted: Container[str],
    needs: Callable[[str], bool] = lambda clip: True,
    scratch: Path,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Packed]:
    """Those `wanted` of the clips of a tar or tar.gz: frames that share a folder named as the clip, and video files
    named so. Only the archive's end, with its checksum, proves them undamaged: read on until there.

    Args:
        place: names the archive in messages.
        needs: asked when a wanted clip comes; one that is not needed is read over.
        scratch: a folder that holds the clip in hand.
        tick: called at every member; may raise.

    Raises:
        DataError: no tar, a damaged one or one that is cut off; a member that is a link or a device, or leaves the
            archive's folder. Scattered.
        StoreError: no space in `scratch`.
    """
    with _translated(place, scratch), contextlib.ExitStack() as opened:
        buffered = io.BufferedReader(raw, _READ_BYTES)
        opened.callback(buffered.detach)  # else it would close what is not its own
        stream: io.BufferedIOBase = buffered
        if buffered.peek(2)[:2] == _GZIP:
            stream = gzip.GzipFile(fileobj=buffered)
            opened.callback(stream.close)
        tar = opened.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member, bufsize=_BLOCK_BYTES))
        yield from _Reader(tar, place, wanted, needs, scratch, tick).clips()
        _check_end(tar, stream, place)


class _Reader:
    def __init__(
        self,
        tar: tarfile.TarFile,
        place: str,
        wanted: Container[str],
        needs: Callable[[str], bool],
        scratch: Path,
        tick: Callable[[], None],
    ) -> None:
        self._tar, self._place, self._scratch, self._tick = tar, place, scratch, tick
        self._wanted, self._needs = wanted, needs
        self._seen: set[str] = set()

    def clips(self) -> Iterator[Packed]:
        folder, packing = "", None
        while (member := self._tar.next()) is not None:
            self._tar.members = []  # type: ignore[attr-defined]  # it would keep a million of them
            self._tick()
            _check(member, self._place)
            if not member.isfile():
                continue
            parent, suffix = str(PurePosixPath(member.name).parent), PurePosixPath(member.name).suffix.lower()
            if packing and parent != folder:
                yield packing.finish()
                packing = None
            if is_frame(member.name):
                if parent != folder:
                    folder, packing = parent, self._begin(clip=PurePosixPath(parent).name)
                if packing:
                    packing.add(member, self._content(member))
            elif suffix in VIDEOS and self._take(clip := clip_id(member.name)):
                yield self._video(clip, suffix, member)
        if packing:
            yield packing.finish()

    def _take(self, clip: str) -> bool:
        if clip not in self._wanted:
            return False
        if clip in self._seen:
            raise Scattered(self._place, clip)
        self._seen.add(clip)
        return self._needs(clip)

    def _begin(self, clip: str) -> _Packing | None:
        return _Packing(clip, self._scratch / "clip.tar", self._place) if self._take(clip) else None

    def _video(self, clip: str, suffix: str, member: tarfile.TarInfo) -> Packed:
        _check_size(member.size, clip, self._place)
        path = self._scratch / f"clip{suffix}"
        with path.open("wb") as copy:
            shutil.copyfileobj(self._content(member), copy, _READ_BYTES)
        if path.stat().st_size != member.size:
            raise tarfile.ReadError(f"{member.name} is cut off")
        return Packed(clip, clip + suffix, path)

    def _content(self, member: tarfile.TarInfo) -> IO[bytes]:
        content = self._tar.extractfile(member)
        assert content is not None  # it is a file
        return content


class _Packing:
    """A clip's frames on their way into a tar of their own; nothing in it depends on who packs it, or when."""

    def __init__(self, clip: str, path: Path, place: str) -> None:
        self._clip, self._path, self._place = clip, path, place
        self._tar = tarfile.open(path, "w")  # noqa: SIM115 - closed by finish
        self._bytes = 0

    def add(self, member: tarfile.TarInfo, content: IO[bytes]) -> None:
        self._bytes += member.size
        _check_size(self._bytes, self._clip, self._place)
        frame = tarfile.TarInfo(f"{self._clip}/{PurePosixPath(member.name).name}")
        frame.size = member.size
        try:
            self._tar.addfile(frame, content)
        except OSError as error:
            if error.errno is None:  # tarfile's own word for a source that ends early
                raise tarfile.ReadError(f"{member.name} is cut off") from error
            raise

    def finish(self) -> Packed:
        self._tar.close()
        return Packed(self._clip, self._clip + FRAMES_TAR, self._path)


class _Member(tarfile.TarInfo):
    """Says of a damaged or missing header what tarfile takes for the archive's end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _Member:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # a block of zeros: this is the end
                raise
            raise tarfile.ReadError(f"a damaged or missing header ({error})") from error

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and member.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def _check(member: tarfile.TarInfo, place: str) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{place}: member {member.name!r} leaves the archive's folder; refused")
    if not (member.isfile() or member.isdir()):
        raise DataError(f"{place}: member {member.name!r} is a link or a device; refused")


def _check_size(size: int, clip: str, place: str) -> None:
    if size > MAX_CLIP_BYTES:
        raise DataError(f"{place}: clip {clip!r} has more than {MAX_CLIP_BYTES >> 30} GiB")


def _check_end(tar: tarfile.TarFile, stream: io.BufferedIOBase, place: str) -> None:
    """Reads on to the end, where gzip has its checksum; after a tar's end there are zeros alone."""
    ahead: Any = tar.fileobj  # what tarfile has read ahead comes first
    for source in (ahead, stream):
        while content := source.read(_READ_BYTES):
            if content.strip(b"\0"):
                raise DataError(f"{place}: goes on after the archive's end; tars that were joined are not read")


@contextlib.contextmanager
def _translated(place: str, scratch: Path) -> Iterator[None]:
    try:
        yield
    except IsrDpoError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{place}: not a whole tar or tar.gz: {error}; mend it at its source") from error
    except OSError as error:
        raise StoreError(
            f"{error.filename or place}: {error.strerror or error}; is there space in {scratch.parent}? TMPDIR names "
            "another place"
        ) from error
