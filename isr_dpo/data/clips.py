"""Where the video that a row names lies: a video file, a folder of frames `<clip id>/c01_0001.jpeg ...` as published
[C], or these frames as `<clip id>.tar`, one object a clip, for stores where thousands of small ones are slow [O]."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from isr_dpo.digests import canonical_digest, hash_file
from isr_dpo.errors import DataError
from isr_dpo.mapped import mapped
from isr_dpo.stores import join, open_store
from isr_dpo.stores.local import explain

VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif")
"""Suffixes of video files, as a bare clip id finds them."""
IMAGES = (".jpeg", ".jpg", ".png", ".webp")
"""Suffixes of frames; other files beside them count for nothing."""
FRAMES_TAR = ".tar"

_ENDS_BYTES = 64 * 1024
_THREADS = 8


def clip_id(video: str) -> str:
    """What names a clip wherever it lies: the last part of its path, without the suffix of a video or a tar."""
    name = video.rstrip("/").rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in (*VIDEOS, FRAMES_TAR) else name


def may_be_same(one: str, other: str) -> bool:
    """Whether two `video` values with one clip id may mean one clip: the shorter path is how the longer one ends, as
    with `x`, `msvd/x.avi` and `test/msvd/x`; `msvd/x` and `tgif/x` are two."""
    folders = (PurePosixPath(video.rstrip("/")).parent.parts for video in (one, other))
    return all(a == b for a, b in zip(*map(reversed, folders), strict=False))


def is_frame(name: str) -> bool:
    """Whether a file is a frame by its name; `._c01_0001.jpeg` is what a Mac adds to archives."""
    name = name.rpartition("/")[2]
    return name.lower().endswith(IMAGES) and not name.startswith(".")


class _Listing(NamedTuple):
    files: Mapping[str, int]
    folders: Mapping[str, str | None]
    """Each with an identity where the listing gives one."""


class Library:
    """Finds clips; each folder is listed once."""

    def __init__(self) -> None:
        self._list = functools.cache(_list)

    def locate(self, video: str, *, folder: str, root: str | None = None) -> str:
        """The path or URI of what `video` means; a folder of frames ends in "/".

        `video` is a URI, or a path, absolute or in `root`; without a `root`, in `folder`. Where it is not a file as it
        stands, there is looked for a folder of frames, a tar of frames, and a video file, by its name without a suffix.
        A `root` is searched for the bare clip id too: published rows hold paths of other machines, and what `fetch`
        brings lies there by clip id. Where nothing is found, the path or URI that was looked for first.

        Raises:
            DataError: several video files of that name.
        """
        places = [_place(root or folder, video)]
        if root is not None:
            places.append(_place(root, clip_id(video)))
        return next(filter(None, map(self._at, places)), places[0])

    def identity(self, location: str) -> str | None:
        """Tells a clip from another one without reading it whole; None where there is none.

        Local files: SHA-256 over the size and the first and last 64 KiB, where containers keep their headers and
        indexes [O]: hashing terabytes at every start would cost more than it finds. Folders of frames: all names,
        and the first, middle and last frame. In S3: names and sizes.
        """
        if "://" not in location:
            return fingerprint(Path(location))
        parent, _, name = location.rstrip("/").rpartition("/")
        listing = self._list(parent)
        if location.endswith("/"):
            return listing.folders.get(name)
        size = listing.files.get(name)
        return None if size is None else f"size {size}"

    def _at(self, place: str) -> str | None:
        parent, _, name = place.rpartition("/")
        listing = self._list(parent)
        if name in listing.files:
            return place
        for base in dict.fromkeys((name, clip_id(name))):
            at = f"{parent}/{base}"
            if base in listing.folders:
                return at + "/"
            if base + FRAMES_TAR in listing.files:
                return at + FRAMES_TAR
            videos = [at + suffix for suffix in VIDEOS if base + suffix in listing.files]
            if len(videos) > 1:
                raise DataError(f"{base!r} may be any of {', '.join(videos)}: keep one, or name it with its suffix")
            if videos:
                return videos[0]
        return None


@contextmanager
def local_copy(location: str) -> Iterator[Path]:
    """The clip as a local file or folder: itself, or fetched for as long as the context lasts. Raises Missing."""
    if "://" not in location:
        yield Path(location)
        return
    with tempfile.TemporaryDirectory() as folder:
        suffix = FRAMES_TAR if location.endswith(FRAMES_TAR) else ""
        path = Path(folder) / f"video{suffix}"
        if location.endswith("/"):
            _get_frames(location.rstrip("/"), path)
        else:
            open_store(location).get(location, path)
        yield path


def hash_clip(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's frames."""
    if not path.is_dir():
        return hash_file(path)
    return canonical_digest({frame.name: hash_file(frame) for frame in frame_files(path)})


def frame_files(folder: Path) -> list[Path]:
    """The frames of a folder, in the order of their names, which is that of time [C]."""
    return sorted(path for path in folder.iterdir() if is_frame(path.name))


def fingerprint(path: Path) -> str | None:
    """Of a local clip, as `Library.identity` says."""
    try:
        if not path.is_dir():
            return _ends(path)
        frames = frame_files(path)
        some = frames[:1] + frames[len(frames) // 2 :][:1] + frames[-1:]
        return canonical_digest([[frame.name for frame in frames], [_ends(frame) for frame in some]])
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{error.strerror}"  # no permission: decoding says so, the identity changes when it is mended


def _ends(path: Path) -> str:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest = hashlib.sha256(f"{size}\n".encode() + stream.read(_ENDS_BYTES))
        stream.seek(max(_ENDS_BYTES, size - _ENDS_BYTES))
        digest.update(stream.read())
    return digest.hexdigest()


def _place(folder: str, video: str) -> str:
    if "://" in video:
        return os.path.normpath(video.removeprefix("file://")) if video.startswith("file://") else video.rstrip("/")
    if "://" in folder and not folder.startswith("file://") and not video.startswith("/"):
        return join(folder, video.rstrip("/"))
    return os.path.abspath(os.path.join(folder.removeprefix("file://"), video))


def _list(folder: str) -> _Listing:
    return _list_remote(folder) if "://" in folder else _list_local(folder or "/")


def _list_local(folder: str) -> _Listing:
    files: dict[str, int] = {}
    folders: dict[str, str | None] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    folders[entry.name] = None
                elif entry.is_file():
                    files[entry.name] = 0
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        explain(error, folder)
    return _Listing(files, folders)


def _list_remote(folder: str) -> _Listing:
    files: dict[str, int] = {}
    frames: dict[str, list[tuple[str, int]]] = {}
    for name, size in open_store(folder).list(folder).items():
        head, slash, rest = name.partition("/")
        if not slash:
            files[name] = size
        elif "/" not in rest and is_frame(rest):
            frames.setdefault(head, []).append((rest, size))
    return _Listing(files, {name: canonical_digest(sorted(listed)) for name, listed in frames.items()})


def _get_frames(uri: str, folder: Path) -> None:
    store = open_store(uri)
    names = [name for name in store.list(uri) if "/" not in name and is_frame(name)]
    folder.mkdir()
    mapped(lambda name: store.get(join(uri, name), folder / name), names, threads=_THREADS)
