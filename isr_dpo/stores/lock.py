"""One owner a run: the lock belongs to the run's URI and id, not to a process.

Processes of one run id (the driver, its steps, pods of the same pipeline run) hold it together; another id is refused
while one of them lives. `Lock.check()` tells a holder that it has lost the lock. Between that moment and the check it
may still write parts; manifests are created conditionally, so that it can never replace what the new owner finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from isr_dpo.errors import RunBusy
from isr_dpo.stores import join
from isr_dpo.stores.local import explain, to_path

POLL_SECONDS = 0.2


class Lock(Protocol):
    """A run's lock while it is held."""

    def check(self) -> None:
        """Raises RunBusy where another run took it over: stop writing."""


@contextlib.contextmanager
def owner(
    run_uri: str,
    run_id: str,
    *,
    patience_seconds: float = 5.0,
    beat_seconds: float = 5.0,
    silent_seconds: float = 30.0,
) -> Iterator[Lock]:
    """Holds the run at `run_uri` for `run_id`.

    Args:
        patience_seconds: how long to wait for another run that is alive.
        beat_seconds: S3: how often a holder shows that it lives.
        silent_seconds: S3: a holder that shows nothing for so long, by the waiting process's own clock, is dead.

    Raises:
        RunBusy: another run owns it and lives, or took this one over meanwhile.
    """
    if run_uri.startswith("s3://"):
        from isr_dpo.stores.lock_s3 import hold

        held = hold(run_uri, run_id, patience_seconds, beat_seconds, silent_seconds)
    else:
        held = _hold(run_uri, run_id, patience_seconds)
    with held as lock:
        yield lock
        lock.check()


def identity(run_id: str) -> dict[str, Any]:
    """Who a holder is, for the message to those it keeps out."""
    return {"run_id": run_id, "host": socket.gethostname(), "pid": os.getpid()}


def busy(run_uri: str, holder: dict[str, Any]) -> RunBusy:
    """The error for those whom `holder` (an identity) keeps out."""
    return RunBusy(
        f"{run_uri} belongs to the run {holder['run_id']!r}, which is alive (process {holder['pid']} on "
        f"{holder['host']}): wait for it, stop it, or use another --run-uri"
    )


class _Flock:
    def check(self) -> None:
        """The kernel takes no lock from a living process."""


@contextlib.contextmanager
def _hold(run_uri: str, run_id: str, patience_seconds: float) -> Iterator[Lock]:
    """flock on `<run>/run.lock`, shared by the processes of the run id that stands in it; a dead process holds nothing.

    A second file, `run.lock.guard`, is held exclusively for the moment of entering: flock gives a lock up for an
    instant when it turns an exclusive lock into a shared one.
    """
    path = to_path(join(run_uri, "run.lock"))
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("a+"))
            with path.with_name("run.lock.guard").open("a") as guard:
                _wait(file, guard, run_uri, run_id, patience_seconds)
        except OSError as error:
            explain(error, str(path))
        yield _Flock()


def _wait(file: TextIO, guard: TextIO, run_uri: str, run_id: str, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    while True:
        if _try_lock(guard, fcntl.LOCK_EX):
            if _enter(file, run_id):
                return
            fcntl.flock(guard, fcntl.LOCK_UN)
        if time.monotonic() > deadline:
            raise busy(run_uri, {"run_id": "?", "pid": "?", "host": "?", **_read(file)})
        time.sleep(POLL_SECONDS)


def _enter(file: TextIO, run_id: str) -> bool:
    """Under the guard: shares the lock of the same run, or takes one that nobody holds."""
    if _read(file).get("run_id") == run_id:
        return _try_lock(file, fcntl.LOCK_SH)
    if not _try_lock(file, fcntl.LOCK_EX):
        return False
    file.truncate(0)
    file.write(json.dumps(identity(run_id)) + "\n")
    file.flush()
    return _try_lock(file, fcntl.LOCK_SH)


def _read(file: TextIO) -> dict[str, Any]:
    """The identity in the lock file; empty where there is none yet, or one is being written."""
    file.seek(0)
    with contextlib.suppress(json.JSONDecodeError):
        found = json.loads(file.read())
        if isinstance(found, dict):
            return found
    return {}


def _try_lock(file: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
