"""What lies in a store and how old it is, abandoned pieces among it: what clearing up needs beside a `Store`."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple


class Aged(NamedTuple):
    """An object's size in bytes, and the seconds since it was written, by the store's clock."""

    size: int
    seconds: float


class Upload(NamedTuple):
    """Parts of an object that was never completed, so that no list shows it: a multipart upload (`upload_id`), or on a
    disk a file or folder on its way in or out."""

    uri: str
    upload_id: str | None
    size: int
    seconds: float


def aged(uri: str) -> dict[str, Aged]:
    """`Store.list` with ages: all objects under `uri` by name relative to it."""
    if uri.startswith("s3://"):
        from isr_dpo.stores import s3

        return s3.aged(uri)
    from isr_dpo.stores.local import LocalStore, to_path

    root, now = to_path(uri), time.time()
    found = {}
    for name in LocalStore().list(uri):
        with contextlib.suppress(FileNotFoundError):  # deleted under our eyes
            state = (root / name).stat()
            found[name] = Aged(state.st_size, now - state.st_mtime)
    return found


def folders(uri: str) -> list[str]:
    """Names of what lies directly below `uri` and holds objects itself."""
    if uri.startswith("s3://"):
        from isr_dpo.stores import s3

        return s3.folders(uri)
    from isr_dpo.stores.local import UNDONE, to_path

    root = to_path(uri)
    below = root.iterdir() if root.is_dir() else ()
    return sorted(path.name for path in below if path.is_dir() and not path.name.startswith(UNDONE))


def uploads(uri: str) -> list[Upload]:
    """What was left unfinished under `uri` by writers that are gone, or is being written now."""
    if uri.startswith("s3://"):
        from isr_dpo.stores import s3

        return s3.uploads(uri)
    from isr_dpo.stores.local import UNDONE, to_path

    undone = []
    for folder, folders, files in os.walk(to_path(uri)):  # unlike rglob, whatever is deleted under our eyes
        undone += [Path(folder, name) for name in [*folders, *files] if name.startswith(UNDONE)]
        folders[:] = [name for name in folders if not name.startswith(UNDONE)]
    return [_undone(path) for path in sorted(undone)]


def abort(upload: Upload) -> None:
    """Removes it; no error where it is gone."""
    if upload.upload_id is not None:
        from isr_dpo.stores import s3

        s3.abort(upload)
        return
    from isr_dpo.stores.local import LocalStore

    LocalStore().delete(upload.uri)


def _undone(path: Path) -> Upload:
    files = [path, *(Path(folder, name) for folder, folders, names in os.walk(path) for name in (*folders, *names))]
    states = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            states.append((file.stat(), file.is_file()))
    size = sum(state.st_size for state, is_file in states if is_file)
    newest = max((state.st_mtime for state, _ in states), default=time.time())
    return Upload(str(path), None, size, time.time() - newest)
