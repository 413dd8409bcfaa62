"""Where a converted model goes: a folder, which appears under its name when it is whole, or a prefix in S3, whose
config.json comes last."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from isr_dpo.digests import canonical_digest
from isr_dpo.errors import ModelError, RecipeError, RunBusy, StoreError
from isr_dpo.manifest import cache_folder
from isr_dpo.models.convert.source import CONFIG
from isr_dpo.outputs import UNFINISHED
from isr_dpo.progress import Progress, log
from isr_dpo.stores import hub, join, open_store, write_bytes
from isr_dpo.stores.local import UNDONE, to_path

MARGIN_BYTES = 64 << 20
"""For config, tokenizer and processor, beside the weights."""


def check_free(destination: str) -> None:
    """Raises ModelError: something is there already; RecipeError: nothing can be written there."""
    if destination.startswith(hub.SCHEME):
        raise RecipeError(f"{destination}: a hub is only read; accepted: a folder, s3://bucket/prefix")
    if is_remote(destination):
        found = open_store(destination).list(destination)
        if found and UNFINISHED not in found:
            raise ModelError(f"{destination}: {len(found)} objects are there already; name another destination")
        return
    folder = to_path(destination)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ModelError(f"{folder}: exists already; name another destination, or remove it")
    if folder.is_symlink() or folder.is_mount():  # the finished folder is renamed to this name
        raise ModelError(f"{folder}: is a link or a mount point; name a folder in it")


def check_room(destination: str, weights_bytes: int) -> None:
    """Raises ModelError: the disk on which the model is written has too little space."""
    folder = staging_folder(destination).parent
    needed, free = weights_bytes + MARGIN_BYTES, free_bytes(folder)
    if free < needed:
        way = "set ISR_DPO_CACHE to another disk" if is_remote(destination) else "name another destination"
        raise ModelError(
            f"{folder}: {needed / 1e9:.2f} GB are to be written, {free / 1e9:.2f} GB are free: "
            f"free some space, or {way}"
        )


def free_bytes(folder: Path) -> int:
    """Of the disk on which `folder` is, or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def staged(destination: str) -> Iterator[Path]:
    """A folder to write the model in. When the block ends well, all of it is at `destination`; else nothing is.

    Raises:
        RunBusy: another process converts to this destination.
        StoreError: the place cannot be written.
    """
    staging = staging_folder(destination)
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _explain(error, destination)
    with _locked(staging, destination):
        _clear(staging)
        try:
            yield staging
            if is_remote(destination):
                _upload(staging, destination)
            else:
                _rename(staging, to_path(destination).absolute())
        except OSError as error:
            _explain(error, destination)
        finally:
            if staging.exists():
                shutil.rmtree(staging)


def is_remote(destination: str) -> bool:
    return "://" in destination and not destination.startswith("file://")


def staging_folder(destination: str) -> Path:
    """The same one for every attempt, so that what a killed one has left is found and cleared."""
    if is_remote(destination):
        return cache_folder() / f"convert-{canonical_digest(destination)[:16]}"
    folder = to_path(destination).absolute()
    return folder.with_name(UNDONE + folder.name)


@contextlib.contextmanager
def _locked(folder: Path, destination: str) -> Iterator[None]:
    """A killed process's lock goes with it."""
    busy = f"{destination}: another conversion writes to this destination; let it end"
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError as error:  # it has just ended
        raise RunBusy(busy) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _stands(folder, descriptor):
            raise RunBusy(busy)
        yield
    except BlockingIOError as error:
        raise RunBusy(busy) from error
    finally:
        os.close(descriptor)


def _stands(folder: Path, descriptor: int) -> bool:
    """Whether `folder` is still what was opened: a conversion that ends renames or removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False


def _clear(staging: Path) -> None:
    left = sorted(staging.iterdir())
    if left:
        log.info("%s: clearing what an interrupted conversion has left (%d files)", staging, len(left))
    for path in left:
        path.unlink()


def _rename(staging: Path, folder: Path) -> None:
    _sync(staging)
    os.rename(staging, folder)
    _sync(folder.parent)


def _upload(folder: Path, destination: str) -> None:
    """A marker first, config.json last: until then nobody takes it for a model."""
    check_free(destination)  # again: a conversion takes minutes
    store = open_store(destination)
    left = store.list(destination)
    if left:
        log.info("%s: clearing what an interrupted conversion has left (%d objects)", destination, len(left))
        store.delete(destination)
    write_bytes(join(destination, UNFINISHED), b'{"kind": "policy", "step": "convert"}\n')
    paths = sorted(folder.iterdir(), key=lambda path: (path.name == CONFIG, path.name))
    progress = Progress(f"upload to {destination}", sum(path.stat().st_size for path in paths) >> 20, "MiB")
    for path in paths:
        store.put(path, join(destination, path.name))
        progress(path.stat().st_size >> 20)
    store.delete(join(destination, UNFINISHED))


def _explain(error: OSError, destination: str) -> NoReturn:
    place = error.filename or destination
    raise StoreError(f"{place}: {error.strerror or error}: mend it, or name another destination") from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
