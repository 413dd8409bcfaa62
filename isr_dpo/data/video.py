"""Video file -> a few frames, uniform over the clip, from decord.

Every clip is read from its first frame to its last; only the wanted frames are kept. Seeking would be two to five times
faster, but with decord2 3.4 it silently gives wrong frames where packets are not in the order of their keyframes (HEVC
and H.264 with open GOPs, MPEG-4 with B-frames) or have no times (AVI with B-frames), and in a damaged file the timing
of decord's threads decides whether the damage is noticed. Reading through is exact, meets all damage (what a codec
conceals stays unseen), and its outcome depends on the file alone. A clip is decoded once a run, so this costs minutes
where training takes hours [O].
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isr_dpo.data.clips import FRAMES_TAR
from isr_dpo.data.container import announced_size

SAMPLER = "linspace-floor/decord/2"
"""Part of the frames' cache key: changes whenever the same file would give other pixels."""

_NO_LOST_FRAMES = 1e-9
"""decord's `fault_tol`: a share of the clip's frames. By default decord repeats a neighbour for a frame it lost."""


class Unreadable(Exception):
    """A video that cannot be used; `str()` is the reason, the same in every attempt."""


class Decoded(NamedTuple):
    """Frames of a clip."""

    frames: np.ndarray
    """uint8 [F, H, W, 3], RGB, rotation applied."""
    indices: tuple[int, ...]
    """Of the frames in the clip, F of them, ascending; repeated where the clip has fewer frames than F."""
    clip_frames: int
    """Frames the clip shows."""


def sample_indices(count: int, frames: int) -> tuple[int, ...]:
    """`frames` indices into a clip of `count` frames: numpy.linspace from the first to the last, fractions dropped
    [C: LLaVA-Hound, `np.linspace(0, n - 1, frames, dtype=int)`]. One frame is the first one."""
    if count < 1 or frames < 1:
        raise ValueError(f"cannot sample {frames} of {count} frames; both must be at least 1")
    return tuple(int(i) for i in np.linspace(0, count - 1, frames, dtype=int))


def decode(path: str | Path, *, frames: int) -> Decoded:
    """`frames` frames of the default video stream of the file `path`, or of a folder or a tar of images (stills.py);
    holds no more than these in memory.

    A decoder may crash on hostile bytes; `decoder.Decoder` does the same in a process of its own.

    Raises:
        Unreadable: no video, cut off, damaged; a frame that decord would replace by its neighbour counts as damage.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == FRAMES_TAR:
        from isr_dpo.data.stills import decode_stills  # it builds on this module

        return decode_stills(path, frames=frames)
    import decord

    _check_whole(path)
    hidden = _count_hidden(path)
    decord.logging.set_level(decord.logging.QUIET)
    with _translated():
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_LOST_FRAMES)
    clip_frames = len(reader) - hidden
    if clip_frames < 1:
        raise Unreadable("shows no frame")
    indices = sample_indices(clip_frames, frames)
    with _translated():
        pixels = _read_through(reader, indices)
    return Decoded(pixels, indices, clip_frames)


def _check_whole(path: Path) -> None:
    try:
        size = path.stat().st_size
        announced = announced_size(path)
    except OSError as error:
        raise Unreadable(f"cannot be opened: {error.strerror}") from error
    if size == 0:
        raise Unreadable("empty file")
    if announced is not None and announced > size:
        raise Unreadable(f"cut off: the file has {size} bytes of the {announced} it announces")


def _count_hidden(path: Path) -> int:
    """Packets of the default video stream that are decoded and never shown: an edit list hides them, in clips that were
    cut without re-encoding. decord counts them as frames. Reads packets, decodes nothing."""
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:  # titles are often not UTF-8
            stream = container.streams.best("video")
            if stream is None:
                raise Unreadable("has no video stream")
            if container.format.name == "mpegts":
                raise Unreadable("an MPEG transport stream, whose first frames decord loses; convert it to mp4 or mkv")
            hidden = [packet.is_discard for packet in container.demux(stream) if packet.size]
    except av.FFmpegError as error:
        raise Unreadable(f"not a readable video: {error.strerror}") from error
    if not hidden:
        raise Unreadable("has no video frame")
    return sum(hidden)


def _read_through(reader: Any, indices: tuple[int, ...]) -> np.ndarray:
    wanted = set(indices)
    kept: dict[int, np.ndarray] = {}
    for i in range(indices[-1] + 1):
        frame = reader.next()
        if i in wanted:
            kept[i] = _unpad(frame.asnumpy())
    return np.stack([kept[i] for i in indices])


def _unpad(frame: np.ndarray) -> np.ndarray:
    """[H, W, 3] of a frame whose rows decord padded to a multiple of their width, which it shows as [H, W, 4] (seen at
    16, 24, 32, 48, 96 and 144 pixels)."""
    height, width, channels = frame.shape
    if channels == 3:
        return frame
    return frame.reshape(height, width * channels)[:, : width * 3].reshape(height, width, 3)


@contextmanager
def _translated() -> Iterator[None]:
    """decord's errors as Unreadable."""
    import decord

    try:
        yield
    except (RuntimeError, AssertionError, ValueError, StopIteration) as error:
        raise Unreadable(_reason(error)) from error
    except (decord.DECORDError, decord.DECORDLimitReachedError) as error:
        raise Unreadable(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """A few words; decord's own carry the time of day, file paths and which of its threads was first."""
    text = str(error)
    if "Error reading" in text or "broken metadata" in text:
        return "not a readable video"
    return "damaged: not every frame can be decoded"
