"""A source from where it lies: a folder as it is; from a hub or S3 through this machine's cache."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from isr_dpo.digests import canonical_digest
from isr_dpo.errors import ModelError
from isr_dpo.manifest import cache_folder, local_folder
from isr_dpo.models.convert.destination import free_bytes
from isr_dpo.models.convert.source import CONFIG, KINDS, is_part
from isr_dpo.progress import Progress
from isr_dpo.scratch import scratch
from isr_dpo.stores import Store, hub, join, open_store
from isr_dpo.stores.surveyed import aged


class Fetched(NamedTuple):
    """`uri` is a hub's at the commit that was fetched."""

    folder: Path
    uri: str


@contextlib.contextmanager
def fetched(uri: str, *, keep: bool = False) -> Iterator[Fetched]:
    """A local folder with the files of a source. Those that were fetched stay until a block ends well, so that a
    command that is interrupted or refused does not fetch them again; with `keep`, longer.

    Raises:
        ModelError: no model lies there, or this machine's cache has no room for it.
    """
    folder = local_folder(uri)
    if folder is not None:
        yield Fetched(folder, uri)
        return
    if uri.startswith(hub.SCHEME):
        uri = hub.pinned(uri)
    store = open_store(uri)
    sizes = {name: size for name, size in store.list(uri).items() if is_part(name)}
    if CONFIG not in sizes:
        raise ModelError(f"{uri}: no {CONFIG}, so no model lies there")
    folder = cache_folder() / f"original-{canonical_digest(uri)[:16]}"
    folder.mkdir(exist_ok=True)
    _fetch(store, uri, _chosen(sizes), folder)
    yield Fetched(folder, uri)
    if not keep:
        shutil.rmtree(folder)


def _chosen(sizes: dict[str, int]) -> dict[str, int]:
    """Of weights that are there in two formats, those that are read."""
    read, other = (name.partition(".")[0] for name, _ in KINDS)
    twice = any(name.startswith(read) for name in sizes)
    return {name: size for name, size in sizes.items() if not (twice and name.startswith(other))}


def _fetch(store: Store, uri: str, sizes: dict[str, int], folder: Path) -> None:
    kept = _kept(uri, sizes, folder)
    wanted = {name: size for name, size in sizes.items() if name not in kept}
    total = sum(wanted.values())
    if total > free_bytes(folder):
        raise ModelError(
            f"{folder}: {total / 1e9:.2f} GB of {uri} are to be fetched, {free_bytes(folder) / 1e9:.2f} GB are free; "
            "free some space, or set ISR_DPO_CACHE to another disk"
        )
    progress = Progress(f"fetch {uri}", total >> 20, "MiB")
    with scratch(folder) as unfinished:
        for name, size in sorted(wanted.items(), key=lambda item: item[1]):
            store.get(join(uri, name), unfinished / "object")
            os.replace(unfinished / "object", folder / name)
            progress(size >> 20)


def _kept(uri: str, sizes: dict[str, int], folder: Path) -> set[str]:
    """What an earlier attempt has fetched and is still what lies at `uri`; the rest of `folder` goes. A hub's files are
    a commit's and never change; those in S3 may have been written again since, by clocks of whole seconds."""
    ages = {} if uri.startswith(hub.SCHEME) else {name: found.seconds for name, found in aged(uri).items()}
    kept, now = set(), time.time()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        state = path.stat()
        if state.st_size == sizes.get(path.name) and now - state.st_mtime + 1 < ages.get(path.name, math.inf):
            kept.add(path.name)
        else:
            path.unlink()
    return kept
