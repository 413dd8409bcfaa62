"""The frames of a run: decoded and resized once, kept losslessly, read at random by every later step.

A shard is a plain tar file of WebP images with an index beside it: `frames-00000.tar`, `index-00000.jsonl`. Equal
frames give equal bytes: there are no times and no file names in them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.records import Row, read_files, to_jsonl

FORMAT = "webp-lossless/tar/1"
"""Part of the frames' cache key."""

_METHOD, _QUALITY = 0, 20
"""WebP's effort. For lossless images quality is effort too. Measured on 8 frames of 224 x 224 footage: method 0 takes
21 ms for 345 KiB, method 1 70 ms for 332 KiB, method 4 370 ms for 318 KiB; reading takes 11 ms for all."""


class Indexed(Row):
    """What the index says of a video: where its frames lie, or why it has none (`reason`)."""

    video: str
    reason: str | None = None
    sha256: str = ""
    """Of the video file."""
    shard: str = ""
    spans: tuple[tuple[int, int], ...] = ()
    """(offset, size) in bytes of every frame in the shard; repeated frames are stored once."""
    height: int = 0
    width: int = 0


class Encoded(NamedTuple):
    """A video's frames as images."""

    sha256: str
    """Of the video file."""
    images: tuple[bytes, ...]
    height: int
    width: int


def encode(frames: np.ndarray, *, sha256: str) -> Encoded:
    """Lossless images of uint8 [F, H, W, 3] frames."""
    from PIL import Image

    images: list[bytes] = []
    for i, frame in enumerate(frames):
        if i and np.array_equal(frame, frames[i - 1]):
            images.append(images[-1])
            continue
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "WEBP", lossless=True, method=_METHOD, quality=_QUALITY)
        images.append(buffer.getvalue())
    return Encoded(sha256, tuple(images), *frames.shape[1:3])


class FrameWriter:
    """Writes one shard and its index into a folder; both are complete after `finish`."""

    def __init__(self, folder: Path, *, number: int) -> None:
        self.shard = folder / f"frames-{number:05d}.tar"
        self.index = folder / index_name(number)
        self._tar = tarfile.open(self.shard, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by finish
        self._rows: list[Indexed] = []

    def add(self, video: str, encoded: Encoded) -> None:
        """Adds the frames of `video`."""
        spans: list[tuple[int, int]] = []
        for i, image in enumerate(encoded.images):
            if i and image == encoded.images[i - 1]:
                spans.append(spans[-1])
                continue
            member = tarfile.TarInfo(f"{len(self._rows):05d}/{i:03d}.webp")
            member.size = len(image)
            spans.append((self._tar.offset + tarfile.BLOCKSIZE, len(image)))  # USTAR: one header block, then the data
            self._tar.addfile(member, io.BytesIO(image))
        row = Indexed(
            video=video,
            sha256=encoded.sha256,
            shard=self.shard.name,
            spans=tuple(spans),
            height=encoded.height,
            width=encoded.width,
        )
        self._rows.append(row)

    def set_aside(self, video: str, reason: str) -> None:
        """Notes that `video` has no frames, and why."""
        self._rows.append(Indexed(video=video, reason=reason))

    def finish(self) -> None:
        """Completes both files."""
        self._tar.close()
        self.index.write_bytes(to_jsonl(self._rows))


class FrameStore:
    """Frames by video, from a folder of shards and indexes. Safe to read from several threads."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        names = [path.name for path in self.folder.glob("index-*.jsonl")]
        self._rows = {row.video: row for row in read_files(self.folder, names, Indexed)}

    def __reduce__(self) -> tuple[type[FrameStore], tuple[Path]]:
        """To another process it travels as its folder."""
        return FrameStore, (self.folder,)

    def videos(self) -> list[str]:
        """The videos that have frames, sorted."""
        return sorted(video for video, row in self._rows.items() if row.reason is None)

    def unreadable(self) -> dict[str, str]:
        """The videos set aside, sorted, each with its reason."""
        return {video: row.reason for video, row in sorted(self._rows.items()) if row.reason is not None}

    def describe(self, video: str) -> Indexed:
        """The index row of `video`. Raises DataError as `read` does."""
        row = self._rows.get(video)
        if row is None:
            raise DataError(f"video {video!r} is not in the frame store {self.folder} ({len(self._rows)} videos)")
        if row.reason is not None:
            raise DataError(f"video {video!r} was set aside: {row.reason}")
        return row

    def images(self, video: str) -> list[bytes]:
        """Frames of `video` as they are stored: WebP. Raises DataError as `read` does, OSError without the shard."""
        row = self.describe(video)
        return list(_images(self.folder / row.shard, row.spans))

    def read(self, video: str) -> np.ndarray:
        """Frames of `video`, uint8 [F, H, W, 3].

        Raises:
            DataError: the store has no such video, or set it aside.
            CorruptOutput: the shard is missing, or holds something else there.
        """
        row = self.describe(video)
        try:
            return np.stack([_pixels(image) for image in self.images(video)])
        except (OSError, SyntaxError) as error:  # PIL raises both for damaged images
            raise CorruptOutput(
                f"{self.folder / row.shard}: frames of {video!r}: {error}; delete the folder"
            ) from error


def index_name(number: int) -> str:
    """`index-00000.jsonl`."""
    return f"index-{number:05d}.jsonl"


def _images(shard: Path, spans: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    with shard.open("rb") as stream:
        for offset, size in spans:
            stream.seek(offset)
            yield stream.read(size)


def _pixels(image: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(opened.convert("RGB"))
