"""Outputs while they are written: part by part, complete once their manifest stands.

Until then their files stand beside an `unfinished.json` that says what they are made from, so that a restarted step
keeps the parts that are done and throws away those of another recipe.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from isr_dpo.digests import code_version, hash_file
from isr_dpo.errors import StaleOutput
from isr_dpo.manifest import MANIFEST, File, Manifest, Origin, content_digest, find
from isr_dpo.stores import Exists, Missing, join, open_store, read_bytes, write_bytes

log = logging.getLogger(__name__)

UNFINISHED = "unfinished.json"
STRICT_CODE = "ISR_DPO_STRICT_CODE"
"""Set in the environment: finished work of other code is refused, not reused (`pipelines run --strict-code`)."""


class Output:
    """A directory being written. `begin` opens one; `seal` completes it."""

    def __init__(self, uri: str, origin: Origin, done: Mapping[str, int]) -> None:
        self.uri = uri
        self.origin = origin
        self._store = open_store(uri)
        self._files: dict[str, File | None] = dict.fromkeys(done)

    @property
    def done(self) -> set[str]:
        """Files that stand complete, an earlier attempt's among them."""
        return set(self._files)

    def put(self, name: str, path: Path) -> None:
        """Adds the local file `path` as `name`.

        Raises:
            StaleOutput: another has finished this output, with another file of this name or none. One that was cut off
                and comes back after its successor is done learns it here.
        """
        file = File(size=path.stat().st_size, sha256=hash_file(path))
        sealed = find(self.uri)  # a request a file; between it and the upload there is no safety
        if sealed is None:
            self._store.put(path, join(self.uri, name))
        elif sealed.files.get(name) != file:
            raise _late(self.uri)
        self._files[name] = file  # last: another thread may read what is done

    def write(self, name: str, content: bytes) -> None:
        """Adds a small file."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "file"
            path.write_bytes(content)
            self.put(name, path)

    def read(self, name: str) -> bytes:
        """A small file that stands complete."""
        return read_bytes(join(self.uri, name))

    def put_folder(self, folder: Path) -> None:
        """Adds every file under `folder`."""
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put(path.relative_to(folder).as_posix(), path)

    def keep(self, names: Iterable[str]) -> None:
        """Leaves all other files out of the manifest to come."""
        self._files = {name: self._files[name] for name in names}

    def seal(self, *, rows: int, deterministic: bool) -> Manifest:
        """Writes the manifest: the output is complete from here on."""
        known = {name: file or self._hash_stored(name) for name, file in self._files.items()}
        manifest = Manifest(
            **asdict(self.origin),
            uri=self.uri,
            code_version=code_version(),
            deterministic=deterministic,
            rows=rows,
            files=dict(sorted(known.items())),
            digest=content_digest(self.origin.kind, known),
        )
        _create(join(self.uri, MANIFEST), manifest)
        self._store.delete(join(self.uri, UNFINISHED))
        return manifest

    def _hash_stored(self, name: str) -> File:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "file"
            self._store.get(join(self.uri, name), path)
            return File(size=path.stat().st_size, sha256=hash_file(path))


def begin(uri: str, origin: Origin) -> Manifest | Output:
    """The finished output at `uri` if it has this origin, else an output to write, holding what an interrupted attempt
    of the same origin finished.

    Raises:
        StaleOutput: a finished output of another origin stands there; or of other code, under `STRICT_CODE`.
    """
    standing = find(uri)
    if standing is not None:
        if standing.origin == origin:
            if os.environ.get(STRICT_CODE) and standing.code_version != code_version():
                raise StaleOutput(
                    f"{uri} was made by code {standing.code_version}, this is {code_version()}: use another --run-uri, "
                    "or leave --strict-code away"
                )
            open_store(uri).delete(join(uri, UNFINISHED))  # of an attempt that was killed as it sealed
            return standing
        what = ", ".join(standing.origin.differences(origin))
        raise StaleOutput(
            f"{uri} was finished from something else: {what} differ. Finished work is never mixed: "
            f"use another --run-uri, or delete {uri} and what was made from it"
        )
    marker = (json.dumps(asdict(origin), sort_keys=True) + "\n").encode()
    left = _left(uri, marker)
    if MANIFEST in left:  # another has finished it since it was looked for
        return begin(uri, origin)
    write_bytes(join(uri, UNFINISHED), marker)
    return Output(uri, origin, {name: size for name, size in left.items() if name != UNFINISHED})


def _left(uri: str, marker: bytes) -> dict[str, int]:
    """What an attempt with this marker has left, or a finished output; another's work is discarded, perhaps by several
    pods at a time."""
    store = open_store(uri)
    left = store.list(uri)
    try:
        if not left or MANIFEST in left or (UNFINISHED in left and read_bytes(join(uri, UNFINISHED)) == marker):
            return left
    except Missing:
        return {}  # another has discarded it just now
    log.warning("%s: discarding the unfinished work of another recipe or input (%d files)", uri, len(left))
    store.delete(uri)
    return {}


def alias(uri: str, manifest: Manifest) -> Manifest:
    """Makes directory `uri` stand for `manifest`: its manifest is a copy, whose files stay where they are."""
    _create(join(uri, MANIFEST), manifest)
    return manifest


def _create(uri: str, manifest: Manifest) -> None:
    try:
        write_bytes(uri, manifest.to_json().encode(), if_absent=True)
    except Exists:
        standing = Manifest.from_json(read_bytes(uri).decode(errors="replace"), where=uri)
        if (standing.origin, standing.digest) != (manifest.origin, manifest.digest):
            raise _late(uri) from None


def _late(uri: str) -> StaleOutput:
    return StaleOutput(f"{uri}: another writer finished this output first, with other content; it stands")
