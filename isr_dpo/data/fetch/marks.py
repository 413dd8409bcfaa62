"""What is known of a chunk at its destination: `.fetch/<chunk>-<place>.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from isr_dpo.data.fetch.chunks import Chunk
from isr_dpo.errors import CorruptOutput
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes

FOLDER = ".fetch"


class Mark(BaseModel):
    """Written when a chunk is begun, and again when it is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    place: str
    identity: str
    """Of the archive that was read."""
    wanted: str
    """Digest of the clip ids that were asked for."""
    complete: bool = False
    renews: bool = False
    """It had changed, or was damaged: until it is complete its clips that stand may be old or damaged, and are replaced
    as it is read."""
    clips: Mapping[str, str] = {}
    """Those that came from here: clip id -> the `video` value that wanted it."""


def find(dest: str, chunk: Chunk) -> Mark | None:
    """Raises CorruptOutput where the file is not ours."""
    try:
        return _read(_uri(dest, chunk))
    except Missing:
        return None


def origins(dest: str) -> dict[str, str]:
    """Clip id -> the `video` value that it came for, of all chunks that were ever read. Raises CorruptOutput."""
    folder = join(dest, FOLDER)
    found = [_read(join(folder, name)) for name in open_store(folder).list(folder)]
    return {clip: video for mark in found for clip, video in mark.clips.items()}


def write(dest: str, chunk: Chunk, mark: Mark) -> None:
    write_bytes(_uri(dest, chunk), mark.model_dump_json(indent=1).encode())


def _read(uri: str) -> Mark:
    try:
        return Mark.model_validate_json(read_bytes(uri))
    except ValidationError as error:
        raise CorruptOutput(f"{uri}: not a mark of a chunk; delete it, and the chunk is read again") from error


def _uri(dest: str, chunk: Chunk) -> str:
    return join(dest, FOLDER, f"{chunk.name}-{hashlib.sha256(chunk.place.encode()).hexdigest()[:8]}.json")
