"""Clips that say which frame is which: every frame shows its own number as a grid of bright and dark blocks."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BITS = 12
_COLUMNS = 4
_BLOCK = 16
HEIGHT, WIDTH = BITS // _COLUMNS * _BLOCK, _COLUMNS * _BLOCK


def draw(number: int, *, scale: int = 1) -> np.ndarray:
    """uint8 [48 scale, 64 scale, 3] showing `number`."""
    bits = np.array([number >> i & 1 for i in range(BITS)]).reshape(-1, _COLUMNS)
    grey = np.where(bits, 220, 40).astype(np.uint8).repeat(_BLOCK * scale, 0).repeat(_BLOCK * scale, 1)
    return np.stack([grey] * 3, axis=-1)


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame [H, W, 3] shows."""
    height, width = frame.shape[0] // (BITS // _COLUMNS), frame.shape[1] // _COLUMNS
    blocks = frame.mean(-1).reshape(BITS // _COLUMNS, height, _COLUMNS, width).mean((1, 3)).ravel()
    return sum(1 << i for i, block in enumerate(blocks) if block > 130)


def numbers_of(frames: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_clip(
    path: Path,
    frames: int = 40,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    gop: int = 10,
    times: Sequence[int] | None = None,
    scale: int = 1,
    first: int = 0,
    start: int = 0,
) -> Path:
    """A clip of frames numbered `first` and up, 10 a second, or shown at other `times`, in tenths of a second.
    With `start`, all times are moved so that the frame number `start` is the first one shown (an edit list in mp4).

    Skips the test where the bundled FFmpeg lacks the encoder.
    """
    try:
        av.codec.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"PyAV's FFmpeg has no encoder {codec}")

    def encode() -> None:
        quiet = {"libx265": {"x265-params": "log-level=none"}}.get(codec, {})
        muxer = {"avoid_negative_ts": "disabled"} if start else {}
        with av.open(str(path), "w", options=muxer) as container:
            stream = container.add_stream(codec, rate=10, options={**quiet, **(options or {})})
            stream.width, stream.height, stream.pix_fmt = WIDTH * scale, HEIGHT * scale, pix_fmt
            stream.gop_size = gop
            stream.codec_context.time_base = Fraction(1, 10)
            packets = []
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(draw(first + i, scale=scale), format="rgb24")
                frame.pts, frame.time_base = times[i] if times else i, Fraction(1, 10)
                packets += stream.encode(frame)
            for packet in packets + stream.encode(None):
                shift = round(start * Fraction(1, 10) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                container.mux(packet)

    # In a thread of its own: where root runs it, SVT-AV1 gives the thread that opens it real-time priority over all
    # other work of the machine, and with it every process that this thread starts later.
    with ThreadPoolExecutor(1) as apart:
        apart.submit(encode).result()
    return path


def write_two_streams(path: Path) -> Path:
    """Two video streams: a small one numbered from 0, and behind it a larger one, marked default, numbered from 100."""
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10, options={"preset": "ultrafast"}) for _ in range(2)]
        streams[1].disposition = av.stream.Disposition.default
        for scale, stream in zip((1, 4), streams, strict=True):
            stream.width, stream.height, stream.pix_fmt = WIDTH * scale, HEIGHT * scale, "yuv420p"
        for i in range(12):
            for scale, first, stream in zip((1, 4), (0, 100), streams, strict=True):
                frame = av.VideoFrame.from_ndarray(draw(first + i, scale=scale), format="rgb24")
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


def rotate(path: Path) -> Path:
    """Gives an mp4 file's track a display matrix of 90 degrees, as phones write it."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 4 + 40  # version 0: 40 bytes stand before the matrix
    unit, minus, last = 1 << 16, (-1 << 16) & 0xFFFFFFFF, 1 << 30
    matrix = (0, unit, 0, minus, 0, 0, 0, 0, last)
    content[place : place + 36] = b"".join(value.to_bytes(4, "big") for value in matrix)
    path.write_bytes(content)
    return path


def damage(path: Path) -> Path:
    """Overwrites the middle of an mp4 file's video data."""
    content = bytearray(path.read_bytes())
    data = content.index(b"mdat") + 4
    third = int.from_bytes(content[data - 8 : data - 4], "big") // 3
    content[data + third : data + 2 * third] = np.random.default_rng(0).bytes(third)
    path.write_bytes(content)
    return path
