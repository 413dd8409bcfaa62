"""What is complete, from what, with which digests.

An output is one directory with one `manifest.json`, written last and created conditionally: the directory is complete
or absent (outputs.py writes it).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

from isr_dpo import removed
from isr_dpo.digests import canonical_digest, hash_file
from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.scratch import scratch
from isr_dpo.stores import Missing, join, open_store, read_bytes

MANIFEST = "manifest.json"
BUILTIN = "builtin:"


@dataclass(frozen=True)
class File:
    """Size in bytes and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Origin:
    """What an output is made from. Two outputs of equal origin are interchangeable."""

    kind: str
    step: str
    inputs: Mapping[str, str]
    """Digest of each input's manifest."""
    recipe_section_digest: str
    prompts_digest: str

    def differences(self, other: Origin) -> list[str]:
        """In words, for a message."""
        found = [
            f"{name} ({getattr(self, name)!r} -> {getattr(other, name)!r})"
            for name in ("kind", "step")
            if getattr(self, name) != getattr(other, name)
        ]
        changed = [n for n in sorted({*self.inputs, *other.inputs}) if self.inputs.get(n) != other.inputs.get(n)]
        found += [f"input {name}" for name in changed]
        if self.recipe_section_digest != other.recipe_section_digest:
            found.append(f"the recipe keys of step {other.step}")
        if self.prompts_digest != other.prompts_digest:
            found.append("the prompts")
        return found


@dataclass(frozen=True)
class Manifest:
    """A complete output. `digest` covers kind and files, so equal content has an equal digest."""

    kind: str
    uri: str
    """Where the files lie; for an alias (policy-00, policy-01 without seed preferences) not where the manifest lies."""
    step: str
    inputs: Mapping[str, str]
    recipe_section_digest: str
    prompts_digest: str
    code_version: str
    deterministic: bool
    rows: int
    files: Mapping[str, File]
    digest: str

    @property
    def origin(self) -> Origin:
        return Origin(self.kind, self.step, self.inputs, self.recipe_section_digest, self.prompts_digest)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, *, where: str = "manifest") -> Manifest:
        """Raises CorruptOutput where `text` is no manifest or its digest does not fit its files."""
        try:
            tree = json.loads(text)
            manifest = cls(**{**tree, "files": {n: File(**f) for n, f in tree["files"].items()}})
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptOutput(f"{where}: not a manifest ({error}); delete its directory and run again") from error
        if manifest.digest != content_digest(manifest.kind, manifest.files):
            raise CorruptOutput(
                f"{where}: its digest does not fit the files it lists; delete its directory and run again"
            )
        return manifest


def content_digest(kind: str, files: Mapping[str, File]) -> str:
    """sha256 over the kind and every file's name, size and sha256."""
    return canonical_digest({"kind": kind, "files": {name: [f.size, f.sha256] for name, f in files.items()}})


def find(uri: str) -> Manifest | None:
    """The manifest at directory `uri`, None where the output is not complete."""
    try:
        return parsed(read_bytes(join(uri, MANIFEST)), uri)
    except Missing:
        return None


def parsed(content: bytes, uri: str) -> Manifest:
    """The manifest that stands at directory `uri` as `content`. That of a run which was copied or moved, or is called
    by another path, names the place where its files lie now."""
    manifest = Manifest.from_json(content.decode(errors="replace"), where=join(uri, MANIFEST))
    if manifest.uri != uri and not manifest.files.keys().isdisjoint(open_store(uri).list(uri)):  # else an alias
        return replace(manifest, uri=uri)
    return manifest


def files(manifest: Manifest, names: Collection[str] | None = None) -> Path:
    """A local folder that holds the manifest's files (all, or `names`), every one verified by its SHA-256.

    Local outputs are verified in place; others are fetched once into the cache (`ISR_DPO_CACHE`, default the user's
    cache folder).

    Raises:
        DataError: a file was removed on purpose (removed.py).
        CorruptOutput: a file is missing or differs.
    """
    wanted = {n: f for n, f in manifest.files.items() if names is None or n in names}
    folder = local_folder(manifest.uri)
    if folder is not None:
        for name, file in wanted.items():
            if not (folder / name).is_file():
                removed.refuse(manifest.uri, name)
            _check(folder / name, file, join(manifest.uri, name))
        return folder
    folder = cache_folder() / manifest.digest
    folder.mkdir(exist_ok=True)
    left = {name: file for name, file in wanted.items() if not _is_whole(folder / name, file)}
    if left:
        _fetch(manifest.uri, left, folder)
    return folder


def fetch(manifest: Manifest, folder: Path) -> None:
    """Writes the manifest's files, every one verified by its SHA-256, into a new folder: for what need not stand in the
    cache as well. Raises as `files` does."""
    folder.mkdir(parents=True)
    _fetch(manifest.uri, manifest.files, folder)


def _is_whole(path: Path, file: File) -> bool:
    return path.is_file() and path.stat().st_size == file.size and hash_file(path) == file.sha256


def _fetch(uri: str, left: Mapping[str, File], folder: Path) -> None:
    store = open_store(uri)
    with scratch(folder) as unfinished:
        for name, file in left.items():
            fetched, path = unfinished / "object", folder / name
            try:
                store.get(join(uri, name), fetched)
            except Missing as error:
                removed.refuse(uri, name)
                raise CorruptOutput(_damage(join(uri, name), "is missing")) from error
            _check(fetched, file, join(uri, name))
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(fetched, path)


def drop_copy(manifest: Manifest) -> None:
    """Removes this machine's copy of a remote output that nobody will ask `files` for again."""
    if local_folder(manifest.uri) is None:
        shutil.rmtree(cache_folder() / manifest.digest, ignore_errors=True)


def verify(manifest: Manifest) -> None:
    """Checks that the files stand: local ones by SHA-256, remote ones by size (they are hashed when they are read).
    Those that were removed on purpose need not.

    Raises:
        CorruptOutput: a file is missing or differs.
    """
    folder = local_folder(manifest.uri)
    place = manifest.uri if folder is None else str(folder)
    standing = open_store(place).list(place)
    absent = manifest.files.keys() - standing.keys()
    gone = removed.find(manifest.uri) if absent else None
    expected = manifest.files.keys() - (absent.intersection(gone.names) if gone else frozenset())
    if folder is not None:
        files(manifest, expected)
        return
    for name in sorted(expected):
        file = manifest.files[name]
        if standing.get(name) != file.size:
            size = f"has {standing[name]} bytes, its manifest says {file.size}" if name in standing else "is missing"
            raise CorruptOutput(_damage(join(manifest.uri, name), size))


def local_folder(uri: str) -> Path | None:
    """The folder of a local URI, or of a model that the package brings (`builtin:world`); None for a remote one."""
    if uri.startswith(BUILTIN):
        return Path(str(resources.files("isr_dpo"))) / "data" / uri.removeprefix(BUILTIN) / "start"
    if "://" in uri and not uri.startswith("file://"):
        return None
    return Path(uri.removeprefix("file://"))


def _check(path: Path, file: File, uri: str) -> None:
    if not path.is_file():
        raise CorruptOutput(_damage(uri, "is missing"))
    size = path.stat().st_size
    if size != file.size:
        raise CorruptOutput(_damage(uri, f"has {size} bytes, its manifest says {file.size}"))
    if hash_file(path) != file.sha256:
        raise CorruptOutput(_damage(uri, "was altered: its SHA-256 is not the manifest's"))


def _damage(uri: str, what: str) -> str:
    return f"{uri} {what}. Delete the directory {uri.rpartition('/')[0]} and run again"


def cache_folder() -> Path:
    """This machine's cache: `ISR_DPO_CACHE`, or one in the user's home. Raises DataError: it cannot be written."""
    root = os.environ.get("ISR_DPO_CACHE")
    folder = Path(root) if root else Path.home() / ".cache" / "isr-dpo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cache folder {folder}: {error.strerror}; set ISR_DPO_CACHE to a writable folder") from error
    return folder
