"""A run's lock on S3: the object `<run>/lock.json`, written only on condition that nobody else wrote it meanwhile.

It names the run id and its holders: `{run_id, holders: {token: {host, pid, beat}}}`. Every holder rewrites it every few
seconds; a waiting process that sees no change for long enough, by its own clock, takes it over, and of two that do so
one wins. Released, it stays without holders: not every server can delete on a condition, and deleting on none could hit
a newcomer's lock.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from isr_dpo.errors import CorruptOutput, IsrDpoError, OutsideError, RunBusy
from isr_dpo.stores import Exists, Missing, join
from isr_dpo.stores.lock import POLL_SECONDS, Lock, busy, identity
from isr_dpo.stores.s3 import read_tagged, swap

log = logging.getLogger(__name__)


@contextlib.contextmanager
def hold(
    run_uri: str, run_id: str, patience_seconds: float, beat_seconds: float, silent_seconds: float
) -> Iterator[Lock]:
    """`lock.owner` for S3; the parameters are described there."""
    lock = _S3Lock(run_uri, run_id, silent_seconds)
    lock.acquire(patience_seconds)
    stop = threading.Event()
    heart = threading.Thread(target=lock.keep, args=(stop, beat_seconds), name="run-lock", daemon=True)
    heart.start()
    try:
        yield lock
    finally:
        stop.set()
        heart.join()
        lock.release()


class _Standing(NamedTuple):
    run_id: str
    holders: dict[str, dict[str, Any]]
    tag: str | None
    """None where there is no object."""

    @property
    def identity(self) -> dict[str, Any]:
        return {"run_id": self.run_id, "host": "?", "pid": "?", **next(iter(self.holders.values()), {})}


class _S3Lock:
    def __init__(self, run_uri: str, run_id: str, silent_seconds: float) -> None:
        self._run_uri = run_uri
        self._uri = join(run_uri, "lock.json")
        self._run_id = run_id
        self._silent_seconds = silent_seconds
        self._token = secrets.token_hex(8)
        self._mutex = threading.Lock()
        self._failure: IsrDpoError | None = None
        self._held = False
        self._shown = 0.0  # when this holder last wrote itself in, monotonic
        self._heard: dict[str, tuple[float, float]] = {}  # of each companion: its last beat, when it was seen here

    def acquire(self, patience_seconds: float) -> None:
        began = changed = time.monotonic()
        watched: str | None = None
        alive = told = False
        while True:
            now = time.monotonic()
            other = self._write(silent=watched if now - changed > self._silent_seconds else None)
            if other is None:
                return
            if other.tag != watched:
                alive = watched is not None
                watched, changed = other.tag, now
            if alive and now - began > patience_seconds:
                raise busy(self._run_uri, other.identity)
            if not alive and not told and now - began > patience_seconds:
                told = True
                who = other.identity
                log.warning(
                    "%s: waiting for the run %r (process %s on %s); it is taken over once silent for %.0f s",
                    *(self._run_uri, who["run_id"], who["pid"], who["host"], self._silent_seconds),
                )
            time.sleep(POLL_SECONDS)

    def keep(self, stop: threading.Event, beat_seconds: float) -> None:
        """Shows every `beat_seconds` that this holder lives, until `stop`."""
        while self._failure is None and not stop.wait(beat_seconds):
            try:
                self._beat()
            except OutsideError as error:
                log.warning("the run's lock could not be renewed, trying on: %s", error)
            except IsrDpoError as error:
                self._failure = error

    def check(self) -> None:
        if self._failure is None and time.monotonic() - self._shown > self._silent_seconds / 2:
            self._beat()  # silent for long (suspended, or cut off): make sure
        if self._failure is not None:
            raise self._failure

    def release(self) -> None:
        if self._failure is None:
            try:
                self._write(leave=True)
            except IsrDpoError as error:  # it counts as silent soon
                log.warning("the run's lock could not be released: %s", error)

    def _beat(self) -> None:
        with self._mutex:
            other = self._write()
        if other is not None:
            self._failure = RunBusy(
                f"{self._run_uri} was taken over by the run {other.run_id!r}, because this one had been silent for "
                f"{self._silent_seconds:.0f} s: nothing more is written; run again when that one is done"
            )

    def _write(self, *, silent: str | None = None, leave: bool = False) -> _Standing | None:
        """Writes this holder into the lock (or, leaving, out of it).

        Returns another run that holds it, in which case nothing is written; the content tagged `silent` holds nothing.
        """
        for last in [False] * 19 + [True]:
            standing = self._look()
            ours = standing.run_id == self._run_id
            free = (not standing.holders and not self._held) or standing.tag in (None, silent)
            if not ours and not free:
                return standing
            holders = self._companions(standing.holders) if ours else {}
            if not leave:
                who = identity(self._run_id)
                holders[self._token] = {"host": who["host"], "pid": who["pid"], "beat": time.time()}
            content = json.dumps({"run_id": self._run_id, "holders": holders}, indent=1).encode()
            try:
                swap(self._uri, content, standing.tag)
            except (Exists, Missing, OutsideError) as error:  # others write too; or a lost answer: look again
                if last and isinstance(error, OutsideError):
                    raise
                if last:
                    raise OutsideError(f"{self._uri}: too many others write it just now; run again") from error
                time.sleep(random.uniform(0.01, 0.2))
            else:
                self._held, self._shown = True, time.monotonic()
                return None
        raise AssertionError

    def _look(self) -> _Standing:
        try:
            content, tag = read_tagged(self._uri)
        except Missing:
            return _Standing("", {}, None)
        try:
            tree = json.loads(content)
            return _Standing(tree["run_id"], tree["holders"], tag)
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptOutput(f"{self._uri}: not a lock ({error}); delete it and run again") from error

    def _companions(self, holders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The other holders of this run, without those not heard of for `silent_seconds`."""
        now = time.monotonic()
        alive = {}
        for token, holder in holders.items():
            beat, since = self._heard.get(token, (None, now))
            if beat != holder["beat"]:
                since = now
            self._heard[token] = (holder["beat"], since)
            if token != self._token and now - since <= self._silent_seconds:
                alive[token] = holder
        return alive
