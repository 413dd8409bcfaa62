"""Stores hold what a run makes: a folder on a disk, or a prefix of an S3 bucket; a hub's models are only read. The
URI's scheme picks one."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

from isr_dpo.errors import RecipeError


class Exists(Exception):
    """`put(..., if_absent=True)` found the object there already."""


class Missing(Exception):
    """No object at the URI."""


class Store(Protocol):
    """Objects by URI. A put is atomic: readers see the whole object or none.

    Transient faults are retried inside; one that stays raises OutsideError.
    """

    def get(self, uri: str, path: Path) -> None:
        """Writes the object to the file `path`. Raises Missing."""

    def put(self, path: Path, uri: str, *, if_absent: bool = False) -> None:
        """Stores the file `path`. With `if_absent`, raises Exists rather than replace (exactly one of two racing
        writers succeeds)."""

    def list(self, uri: str) -> dict[str, int]:
        """All objects under the prefix `uri + "/"`: name relative to it -> size in bytes. Empty where there is none."""
        ...

    def delete(self, uri: str) -> None:
        """Removes the object, or all objects under it; no error where there is none."""


def open_store(uri: str) -> Store:
    """The store that `uri` belongs to: `s3://bucket/prefix`, a path (absolute, relative or file://), or a model of a
    Hugging Face hub, `hf://organisation/name[@revision]`."""
    scheme, separator, _ = uri.partition("://")
    if not separator or scheme == "file":
        from isr_dpo.stores.local import LocalStore

        return LocalStore()
    if scheme == "s3":
        from isr_dpo.stores.s3 import S3Store

        return S3Store()
    if scheme == "hf":
        from isr_dpo.stores.hub import HubStore

        return HubStore()
    raise RecipeError(f"{uri}: no store for scheme {scheme!r}; accepted: a path, file://, s3://")


def join(uri: str, *names: str) -> str:
    """`uri/name/name`."""
    return "/".join([uri.rstrip("/"), *names])


def read_bytes(uri: str) -> bytes:
    """The object at `uri`, for small ones. Raises Missing."""
    if uri.startswith("s3://"):  # one request, without the machinery for large files
        from isr_dpo.stores.s3 import read_tagged

        return read_tagged(uri).content
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        open_store(uri).get(uri, path)
        return path.read_bytes()


def write_bytes(uri: str, content: bytes, *, if_absent: bool = False) -> None:
    """Stores `content` at `uri`, for small objects. Raises Exists with `if_absent`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "object"
        path.write_bytes(content)
        open_store(uri).put(path, uri, if_absent=if_absent)
