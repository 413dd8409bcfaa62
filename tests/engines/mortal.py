"""Engines for the pool's tests, which die, fail or wait as their requests say; importable by a worker's process."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from isr_dpo.engines import Choice, Choose, Engine, Progress, Sample, Text
from isr_dpo.engines.fake import FakeEngine
from isr_dpo.errors import ModelError


class MortalEngine(FakeEngine):
    """Counts each request as done; then one whose video is `die` kills the process (`die once`: the first time only,
    as a file in `folder` tells), `fail` raises, `wait` is never done, `slow` takes a moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / f"opened-{os.getpid()}").touch()
        logging.getLogger("isr_dpo").info("opened by %s", "a worker")

    def sample(self, requests: Sequence[Sample], progress: Progress = lambda _: None) -> list[list[Text]]:
        for request in requests:
            progress(1)
            self._meet(request.video)
        return super().sample(requests)

    def choose(self, requests: Sequence[Choose], progress: Progress = lambda _: None) -> list[Choice]:
        return super().choose(requests, progress)

    def _meet(self, video: str) -> None:
        if video == "die" or (video == "die once" and self._first()):
            os.kill(os.getpid(), signal.SIGKILL)
        if video == "fail":
            raise ModelError("no memory for this")
        if video == "break":
            raise FileNotFoundError(2, "no such frames")
        while video == "wait":
            time.sleep(0.1)
        if video == "slow":
            time.sleep(0.1)

    def _first(self) -> bool:
        try:
            (self._folder / "died").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def sample(requests: Sequence[Sample], engine: Engine, progress: Progress) -> list[list[Text]]:
    """A job for a worker, which may be of another process."""
    return engine.sample(requests, progress)


def choose(requests: Sequence[Choose], engine: Engine, progress: Progress) -> list[Choice]:
    return engine.choose(requests, progress)


def refused() -> FakeEngine:
    """An engine that cannot be opened."""
    raise ModelError("half a policy")


def name_of_device() -> FakeEngine:
    """An engine whose words are the GPUs that its process sees."""
    engine = FakeEngine()
    engine.words = (os.environ.get("CUDA_VISIBLE_DEVICES", "none"),) * len(engine.words)  # type: ignore[assignment]
    return engine
