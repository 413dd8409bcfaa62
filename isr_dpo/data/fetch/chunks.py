"""The archives that a source has, by the form of its name: a folder, a bucket, an HTTP server, or a hub."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from isr_dpo.data.clips import fingerprint
from isr_dpo.data.fetch.http import HttpFile, without_secrets
from isr_dpo.errors import DataError, RecipeError
from isr_dpo.stores import join, open_store
from isr_dpo.stores.local import explain, to_path

ARCHIVES = (".tar", ".tar.gz", ".tgz")
ACCEPTED = (
    "a folder or s3:// prefix, or an archive in it, https://server/folder/ with --chunks, the URL of one archive, a "
    ".txt file with a URL a line, or hf://datasets/ORGANISATION/NAME[@REVISION]/FOLDER"
)


class Opened(NamedTuple):
    """An archive from its first byte."""

    raw: io.RawIOBase
    identity: str
    """Changes whenever the archive does, as far as its source tells."""


@dataclass(frozen=True)
class Chunk:
    """An archive of a source."""

    name: str
    place: str
    """Its path or address, without secrets."""
    open: Callable[[], Opened]


def find_chunks(source: str, names: Sequence[str] = ()) -> list[Chunk]:
    """The archives of `source` (see ACCEPTED); of those that it lists, the ones with `names` alone. In a name,
    `{0..15}` stands for sixteen.

    Raises:
        RecipeError: a source of another form, or an HTTP server's folder without names.
        DataError: no archive there, or not one of `names`.
        StoreError, OutsideError: as the source says.
    """
    names = [each for name in names for each in _spread(name)]
    if source.startswith("hf://"):
        from isr_dpo.data.fetch.hub import hub_chunks

        return _chosen(hub_chunks(source), names, source)
    if source.startswith(("http://", "https://")):
        return _from_server(source, names)
    if source.startswith("s3://"):
        return _from_bucket(source, names)
    if "://" in source and not source.startswith("file://"):
        raise RecipeError(f"{source}: no source of archives; accepted: {ACCEPTED}")
    try:
        return _from_disk(source, names)
    except OSError as error:
        explain(error, source)


def _from_disk(source: str, names: Sequence[str]) -> list[Chunk]:
    path = to_path(source)
    if path.suffix == ".txt" and path.is_file():
        return _chosen([remote(line) for line in path.read_text().split()], names, source)
    if path.is_dir():
        found = sorted(each for each in path.iterdir() if each.name.endswith(ARCHIVES))
        return _chosen([_local(each) for each in found], names, source)
    if path.is_file():
        return [_local(path)]
    raise DataError(f"{source}: there is nothing; accepted: {ACCEPTED}")


def remote(
    url: str, *, token: str | None = None, size: int | None = None, place: str = "", identity: str = ""
) -> Chunk:
    """An archive on an HTTP server; `place` and `identity` where a hub's own words last longer than the address."""
    if not url.startswith(("http://", "https://")):
        raise RecipeError(f"{without_secrets(url)}: no URL of an archive")

    def open_it() -> Opened:
        raw = HttpFile(url, token=token, size=size)
        return Opened(raw, identity or f"{raw.identity.tag} {raw.identity.size}")

    place = place or without_secrets(url)
    return Chunk(place.rpartition("/")[2], place, open_it)


def _local(path: Path) -> Chunk:
    def open_it() -> Opened:
        try:
            raw = io.FileIO(path)
        except OSError as error:
            explain(error, str(path))
        return Opened(raw, fingerprint(path) or "")

    return Chunk(path.name, str(path), open_it)


def _from_server(source: str, names: Sequence[str]) -> list[Chunk]:
    if not source.endswith("/"):
        if names:
            raise RecipeError(f"{without_secrets(source)}: --chunks are names in a folder, whose URL ends in /")
        return [remote(source)]
    if not names:
        raise RecipeError(
            f"{source}: an HTTP server lists nothing: name the archives, --chunks 'chunk_{{0..15}}.tar.gz'"
        )
    return [remote(source + name) for name in names]


def _from_bucket(source: str, names: Sequence[str]) -> list[Chunk]:
    """Read over HTTP like the rest: a cut connection goes on where it was."""
    from isr_dpo.stores.s3 import address

    def chunk(uri: str) -> Chunk:
        def open_it() -> Opened:
            raw = HttpFile(uri, sign=address)
            return Opened(raw, f"{raw.identity.tag} {raw.identity.size}")

        return Chunk(uri.rpartition("/")[2], uri, open_it)

    if source.endswith(ARCHIVES):
        return [chunk(source)]
    found = sorted(name for name in open_store(source).list(source) if "/" not in name and name.endswith(ARCHIVES))
    return _chosen([chunk(join(source, name)) for name in found], names, source)


def _chosen(chunks: list[Chunk], names: Sequence[str], source: str) -> list[Chunk]:
    by_name = {chunk.name: chunk for chunk in chunks}
    if absent := [name for name in names if name not in by_name]:
        there = ", ".join(list(by_name)[:20]) or "no archive"
        raise DataError(f"{source}: has no {', '.join(absent)}; there is {there}")
    if not chunks:
        raise DataError(f"{source}: has no archive ({', '.join(ARCHIVES)})")
    return [by_name[name] for name in names] or chunks


def _spread(name: str) -> list[str]:
    """`a{0..2}` as a0, a1, a2."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", name)
    if match is None:
        return [name]
    first, last = int(match[1]), int(match[2])
    return [f"{name[: match.start()]}{number}{name[match.end() :]}" for number in range(first, last + 1)]
