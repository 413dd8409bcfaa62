"""Progress of long work as log lines: a pod's log and a terminal show the same."""

from __future__ import annotations

import logging
import sys
import threading
import time

log = logging.getLogger("isr_dpo")

EVERY_SECONDS = 3.0
MARK = "isr-dpo | "
"""Begins our lines on a step's standard output, where libraries and KFP write too; a local driver shows no others."""


def speak() -> None:
    """Lets what this package logs out on standard output, whatever else has set logging up: KFP has, before a step."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(_Marked())
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class _Marked(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(MARK + line for line in super().format(record).splitlines())


class Progress:
    """Counts finished items and logs `title: done/total, rate` every few seconds. Any thread may count."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = 0
        self._started = self._shown = time.monotonic()
        self._mutex = threading.Lock()

    def __call__(self, done: int) -> None:
        """`done` more items are finished; below 0, as many of them are to be done again."""
        with self._mutex:
            self._count(done)

    def _count(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._shown >= EVERY_SECONDS:
            self._shown = now
            rate = self._done / (now - self._started)
            log.info("%s: %d/%d %s, %.1f/s", self._title, self._done, self._total, self._unit, rate)
