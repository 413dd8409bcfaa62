"""A folder on a disk as a store."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO, NoReturn

from isr_dpo.errors import StoreError
from isr_dpo.stores import Exists, Missing

UNDONE = ".undone-"
"""Prefix of names that are no objects: a put that is not finished, a folder on its way out. What a killed process
leaves of them goes with its folder."""
_CHUNK_BYTES = 1 << 20
_ATTEMPTS = 9


class LocalStore:
    """Objects are files; a URI is a path (relative, absolute or file://).

    Raises StoreError where the disk is full or the place may not be written.
    """

    def get(self, uri: str, path: Path) -> None:
        try:
            source = to_path(uri).open("rb")
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise Missing(uri) from None
        except OSError as error:
            explain(error, uri)
        with source:
            try:
                with path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _CHUNK_BYTES)
            except OSError as error:
                explain(error, str(path))

    def put(self, path: Path, uri: str, *, if_absent: bool = False) -> None:
        target = to_path(uri)
        with path.open("rb") as source:
            try:
                _put(source, target, if_absent=if_absent)
            except FileExistsError:
                raise Exists(uri) from None
            except OSError as error:
                explain(error, uri)

    def list(self, uri: str) -> dict[str, int]:
        root = to_path(uri)
        found = {}
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if not name.startswith(UNDONE)]
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # deleted under our eyes
                    if not name.startswith(UNDONE):
                        found[path.relative_to(root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def delete(self, uri: str) -> None:
        target = to_path(uri)
        try:
            if target.is_dir():
                # Renamed first: readers see all of it or nothing, never a manifest without its files.
                doomed = target.with_name(UNDONE + secrets.token_hex(8))
                os.rename(target, doomed)
                shutil.rmtree(doomed)
            else:
                target.unlink()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return  # the last: it was not there, and another process makes it just now
        except OSError as error:
            explain(error, uri)
        with contextlib.suppress(OSError):  # it still holds something
            target.parent.rmdir()


def to_path(uri: str) -> Path:
    """The path that a local URI names."""
    return Path(uri.removeprefix("file://"))


def explain(error: OSError, place: str) -> NoReturn:
    """Raises StoreError with the place and the way out."""
    ways = {
        errno.ENOSPC: "the disk is full: free some space, or use another --run-uri, and run again",
        errno.EDQUOT: "the disk quota is used up: free some space, or use another --run-uri, and run again",
        errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows: use another --run-uri",
        errno.EACCES: "may not be written or read by this user: mend its permissions, or use another --run-uri",
        errno.EPERM: "is refused by the file system (hard links are needed): use another --run-uri",
        errno.EROFS: "lies on a read-only file system: use another --run-uri",
        errno.ENOTDIR: "lies below a file, not a folder: use another --run-uri",
        errno.EISDIR: "is a folder: use another --run-uri",
    }
    way = ways.get(error.errno or 0, f"{error.strerror}: mend it, or use another --run-uri")
    raise StoreError(f"{place}: {way}") from error


def _put(source: BinaryIO, target: Path, *, if_absent: bool) -> None:
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):  # another process deletes the folder, or prunes it, just now
            _try_put(source, target, if_absent=if_absent)
            return
    _try_put(source, target, if_absent=if_absent)


def _try_put(source: BinaryIO, target: Path, *, if_absent: bool) -> None:
    undone = target.with_name(UNDONE + secrets.token_hex(8))  # same folder, hence same file system
    _make_folder(target.parent)
    source.seek(0)
    try:
        with undone.open("xb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK_BYTES)
            copy.flush()
            os.fsync(copy.fileno())
        if if_absent:
            os.link(undone, target)  # refuses where the name exists; a rename would replace
        else:
            os.replace(undone, target)
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            undone.unlink()


def _make_folder(folder: Path) -> None:
    """Raises FileNotFoundError where another process deletes it just now, which mkdir reports as FileExistsError: it
    stood when it was to be made, and no longer when mkdir looked what it is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        code = errno.ENOTDIR if folder.is_file() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(folder)) from error


def _sync_folder(folder: Path) -> None:
    """Waits until the folder's names are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
