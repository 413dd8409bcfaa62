"""Clips as published: frames already taken, which say their number; here as a folder or as one tar."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from clips import draw
from PIL import Image


def frame(number: int, *, scale: int = 1, kind: str = "JPEG") -> bytes:
    """An image that shows `number` (see clips.draw)."""
    buffer = io.BytesIO()
    Image.fromarray(draw(number, scale=scale)).save(buffer, kind)
    return buffer.getvalue()


def clip_frames(count: int, *, first: int = 0) -> dict[str, bytes]:
    """Published names -> images that show `first` and up."""
    return {f"c01_{i + 1:04d}.jpeg": frame(first + i) for i in range(count)}


def write_folder(folder: Path, count: int, *, first: int = 0) -> Path:
    folder.mkdir(parents=True)
    for name, content in clip_frames(count, first=first).items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, members: dict[str, bytes], *, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_clip_tar(path: Path, count: int, *, first: int = 0) -> Path:
    return write_tar(path, {f"{path.stem}/{name}": data for name, data in clip_frames(count, first=first).items()})
