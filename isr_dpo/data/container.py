"""How large a video file says it is, read from its container's own bookkeeping.

A file cut short by a broken download often decodes to fewer frames without any error (Matroska, WebM and AVI do). The
container gives it away: the sizes it announces reach past the end of the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_BOXES = {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"styp", b"sidx", b"mfra", b"uuid", b"meta"}
"""Top-level boxes of MP4 and QuickTime. Anything else is trailing junk, whose "size" means nothing."""


def announced_size(path: Path) -> int | None:
    """Bytes that the file ought to have at least; None where its container does not say (or is another one).

    Reads MP4 and QuickTime (box sizes), Matroska and WebM (Segment size), AVI (RIFF size).
    """
    with path.open("rb") as stream:
        head = stream.read(12)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _riff_end(head)
        if head[:4] == b"\x1aE\xdf\xa3":
            return _segment_end(stream)
        if head[4:8] in _BOXES:
            return _boxes_end(stream)
    return None


def _riff_end(head: bytes) -> int | None:
    size = int.from_bytes(head[4:8], "little")
    return 8 + size if 0 < size < 0xFFFFFFFF else None  # a recorder that was cut off leaves 0


def _segment_end(stream: BinaryIO) -> int | None:
    stream.seek(4)
    header = _vint(stream)
    if header is None:
        return None
    stream.seek(header, 1)
    if stream.read(4) != b"\x18\x53\x80\x67":
        return None
    size = _vint(stream)
    return None if size is None else stream.tell() + size


def _vint(stream: BinaryIO) -> int | None:
    """EBML's variable-length integer; None where it is cut off, invalid or "unknown" (a live stream)."""
    first = stream.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = first[0] & (0xFF >> length)
    for byte in stream.read(length - 1):
        value = value << 8 | byte
    return None if value == (1 << 7 * length) - 1 else value


def _boxes_end(stream: BinaryIO) -> int:
    end = 0
    while True:
        stream.seek(end)
        head = stream.read(16)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if kind not in _BOXES or size < 8:  # junk, the file's end, or a box that lasts until there (size 0)
            return end
        end += size
