"""What training logs, in MLflow while it trains: the curves of a step that runs for hours."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.errors import OutsideError
from isr_dpo.tracking import StepRun, open_step, record_failure

log = logging.getLogger(__name__)

EVERY_SECONDS = 5.0
"""Optimiser steps go to MLflow together, this often."""
_LAST_WORD_SECONDS = 60.0
_LAST_WORD_IN_FAILURE_SECONDS = 2.0  # a process that is told to stop has seconds


class Live:
    """Brings lines to a step's nested run from a thread of its own: `log` returns at once.

    While MLflow is away the lines are kept and tried again, with one warning an outage. What is still missing at the
    end is logged with the finished step, from its log file (`StepRun.curve`).
    """

    def __init__(self, open_run: Callable[[], StepRun]) -> None:
        self._open = open_run
        self._run: StepRun | None = None
        self._known: set[int] | None = None
        self._away = False
        self._lines: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._waiting: list[Mapping[str, Any]] = []
        self._ended = threading.Event()
        self._bring()  # here, not in the thread: importing MLflow must not meet other imports halfway
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, line: Mapping[str, Any]) -> None:
        """An optimiser step: `step` (from 1), `loss` and other figures; `time` (seconds since the epoch), else now. A
        resumed step may tell its first steps again: those that MLflow has are passed over."""
        self._lines.put({"time": time.time(), **line})

    def close(self, *, patience_seconds: float) -> StepRun | None:
        """Brings the rest, waited for this long at most. Returns the run where it can be reached."""
        self._ended.set()
        self._thread.join(patience_seconds)
        return None if self._away or self._thread.is_alive() else self._run

    def _work(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._bring()
        self._bring()

    def _bring(self) -> None:
        while not self._lines.empty():
            self._waiting.append(self._lines.get())
        try:
            self._run = self._run or self._open()
            if self._waiting:
                self._known = self._run.curve(self._waiting, self._known)
        except OutsideError as error:
            if not self._away:
                log.warning("training goes on, MLflow gets its curves later: %s", error)
            self._away = True
            self._known = None  # MLflow alone knows what of the last lines it has taken
        else:
            self._waiting.clear()
            self._away = False


@contextlib.contextmanager
def show(recipe: Recipe, *, run_uri: str, step: str, index: int) -> Iterator[Live]:
    """The nested run of `step`, RUNNING from its start on, to log optimiser steps to while it works.

    It stays RUNNING after the block, in failure too: `tracking.step_run` goes on in the same run to complete it, or to
    say why the step failed. (An OutsideError alone is recorded here, because a step's failure to reach something is not
    taken to MLflow again.) That MLflow is away raises nothing; where it is from the start, the block begins as soon as
    its client gives up: seconds where nothing listens, else about a minute.
    """
    shown = Live(lambda: open_step(recipe, run_uri=run_uri, run_id="", step=step, index=index))
    try:
        yield shown
    except BaseException as error:
        run = shown.close(patience_seconds=_LAST_WORD_IN_FAILURE_SECONDS)
        if run is not None and isinstance(error, OutsideError):
            record_failure(run, error)
        raise
    shown.close(patience_seconds=_LAST_WORD_SECONDS)
