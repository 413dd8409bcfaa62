"""Archives as published, of clips whose frames say their number."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from stills import clip_frames


def tar_of(members: Mapping[str, bytes] | Iterable[tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if isinstance(members, Mapping):
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        else:
            for member in members:
                tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def frames_of(*clips: int, count: int = 4, under: str = "") -> dict[str, bytes]:
    """Members `<under>c<clip>/c01_0001.jpeg ...`; the frames of clip n show 10 n and up."""
    return {
        f"{under}c{clip}/{name}": content
        for clip in clips
        for name, content in clip_frames(count, first=10 * clip).items()
    }


def chunk(*clips: int, count: int = 4) -> bytes:
    """As published: tar.gz."""
    return gzip.compress(tar_of(frames_of(*clips, count=count)), mtime=0)


def write_chunks(folder: Path, *chunks: tuple[int, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, clips in enumerate(chunks):
        (folder / f"chunk_{number}.tar.gz").write_bytes(chunk(*clips))
    return folder


def write_rows(path: Path, *videos: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"q{i}", "video": video, "prompt": "what ?", "answer": "it"} for i, video in enumerate(videos)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)
