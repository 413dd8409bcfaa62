"""Video file -> a few frames, uniform over the clip. Frames come from decord, the packets' times from PyAV.

decord numbers frames by sorted times and seeks to keyframes by their place in the file. With decord2 3.4 that silently
gives wrong frames where the two orders differ (HEVC and H.264 with open GOPs, MPEG-4 with B-frames), where packets have
no times (AVI with B-frames), where an edit list hides frames (clips cut without re-encoding), and near the end of FLV
files. Such files are read from the start to the last wanted frame instead, which is exact and two to five times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isr_dpo.data.container import announced_size

SAMPLER = "linspace-floor/decord/1"
"""Part of the frames' cache key: changes whenever the same file would give other pixels."""

_SEEKABLE_FORMATS = ("mov,", "matroska,", "avi")
"""Where decord's seeks were found exact, given the packets' times and order (MP4, QuickTime, Matroska, WebM, AVI)."""
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


class _Timing(NamedTuple):
    """What the packets say."""

    hidden: int
    """Packets decoded but never shown (an edit list's)."""
    seekable: bool
    """decord's seeks are exact on this file."""


def sample_indices(count: int, frames: int) -> tuple[int, ...]:
    """`frames` indices into a clip of `count` frames: numpy.linspace from the first to the last, fractions dropped
    [C: LLaVA-Hound, `np.linspace(0, n - 1, frames, dtype=int)`]. One frame is the first one."""
    if count < 1 or frames < 1:
        raise ValueError(f"cannot sample {frames} of {count} frames; both must be at least 1")
    return tuple(int(i) for i in np.linspace(0, count - 1, frames, dtype=int))


def decode(path: str | Path, *, frames: int) -> Decoded:
    """`frames` frames of the default video stream of the file `path`; holds no more than these in memory.

    A decoder may crash on hostile bytes; `decoder.Decoder` does the same in a process of its own.

    Raises:
        Unreadable: no video, cut off, damaged; a frame that decord would replace by its neighbour counts as damage.
    """
    import decord

    path = Path(path)
    _check_whole(path)
    timing = _read_timing(path)
    decord.logging.set_level(decord.logging.QUIET)
    with _translated():
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=_NO_LOST_FRAMES)
    clip_frames = len(reader) - timing.hidden
    if clip_frames < 1:
        raise Unreadable("shows no frame")
    indices = sample_indices(clip_frames, frames)
    with _translated():
        seek = timing.seekable and _timestamps_ascend(reader)
        pixels = reader.get_batch(list(indices)).asnumpy() if seek else _read_through(reader, indices)
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


def _read_timing(path: Path) -> _Timing:
    import av

    try:
        with av.open(str(path), metadata_errors="replace") as container:  # titles are often not UTF-8
            stream = container.streams.best("video")
            if stream is None:
                raise Unreadable("has no video stream")
            if container.format.name == "mpegts":
                raise Unreadable("an MPEG transport stream, whose first frames decord loses; convert it to mp4 or mkv")
            seekable = container.format.name.startswith(_SEEKABLE_FORMATS)
            packets = [(p.pts, p.is_keyframe, p.is_discard) for p in container.demux(stream) if p.size]
    except av.FFmpegError as error:
        raise Unreadable(f"not a readable video: {error.strerror}") from error
    if not packets:
        raise Unreadable("has no video frame")
    hidden = sum(discard for _, _, discard in packets)
    times = [pts for pts, _, _ in packets if pts is not None]
    if not seekable or hidden or len(set(times)) < len(packets):
        return _Timing(hidden, seekable=False)
    place = {pts: i for i, pts in enumerate(sorted(times))}
    return _Timing(0, seekable=all(place[pts] == i for i, (pts, key, _) in enumerate(packets) if key))


def _timestamps_ascend(reader: Any) -> bool:
    """As decord sees them; its FFmpeg may know less than PyAV's."""
    starts = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
    return bool((np.diff(starts) > 0).all())


def _read_through(reader: Any, indices: tuple[int, ...]) -> np.ndarray:
    wanted = set(indices)
    kept: dict[int, np.ndarray] = {}
    for i in range(indices[-1] + 1):
        frame = reader.next()
        if i in wanted:
            kept[i] = frame.asnumpy()
    return np.stack([kept[i] for i in indices])


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


_BAD_WIDTH = "decord cannot hold frames of this width (seen with 16, 24, 32, 48, 96 and 144 pixels); convert the video"
_REASONS = {
    "duplicate frames": "damaged: some frames cannot be decoded",
    "Error sending packet": "damaged: the decoder refuses a packet",
    "REWIND_RETRY": "damaged: a frame is not found again",
    "must exactly match": _BAD_WIDTH,
    "strides": _BAD_WIDTH,
    "Error reading": "not a readable video",
    "broken metadata": "not a readable video",
}


def _reason(error: BaseException) -> str:
    """decord's messages carry the time of day and file paths; a reason must be the same in every attempt."""
    for words, reason in _REASONS.items():
        if words in str(error):
            return reason
    return f"decord cannot read it ({type(error).__name__})"
