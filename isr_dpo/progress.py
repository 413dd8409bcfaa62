"""Progress of long work as log lines: a pod's log and a terminal show the same."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("isr_dpo")

EVERY_SECONDS = 3.0


class Progress:
    """Counts finished items and logs `title: done/total, rate` every few seconds."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._started = self._shown = time.monotonic()

    def __call__(self, done: int) -> None:
        """`done` more items are finished."""
        self._done += done
        now = time.monotonic()
        if now - self._shown >= EVERY_SECONDS:
            self._shown = now
            rate = self._done / (now - self._started)
            log.info("%s: %d/%d %s, %.1f/s", self._title, self._done, self._total, self._unit, rate)
