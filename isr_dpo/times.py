"""How long each step took: a small record beside the run, written when a step has done something.

    <run>/times/generate-01.json
    {"step": "generate", "index": 1, "share": 0, "rows": 700, "unit": "questions",
     "attempts": [{"started": "2025-01-01T12:00:00Z", "seconds": 61.2, "ended": "done"}]}

An attempt that failed stands with the error's class; one that was killed leaves none. A step whose output stood
complete records nothing, so a resumed run keeps the times of the work itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from isr_dpo import layout
from isr_dpo.errors import CorruptOutput
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes

DONE = "done"
_COUNTED = {
    "prepare": ("videos", "videos"),
    "generate": ("rows", "questions"),
    "retrospect": ("rows", "videos"),
    "judge": ("rows", "questions"),
    "prefer": ("preferences/rows", "questions"),
    "train": ("pairs", "pairs"),
}
"""The metric that says how much a step did, and of what; answer and evaluate have one a set."""


@dataclass(frozen=True)
class Attempt:
    """One go at a step: `started` in UTC, `ended` `done` or an error's class."""

    started: str
    seconds: float
    ended: str


@dataclass(frozen=True)
class StepTime:
    """A step, or (`share` above 0) one pod's share. `rows` counts what it was about, in `unit`; None: unknown."""

    step: str
    index: int
    share: int
    attempts: tuple[Attempt, ...]
    rows: int | None = None
    unit: str = ""

    @property
    def seconds(self) -> float:
        """Of all its attempts."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def done(self) -> bool:
        return bool(self.attempts) and self.attempts[-1].ended == DONE


def record(
    run_uri: str,
    step: str,
    index: int,
    *,
    started: float,
    seconds: float,
    ended: str = DONE,
    metrics: Mapping[str, float] | None = None,
    share: int = 0,
) -> None:
    """Adds an attempt, begun at `started` (seconds since the epoch). What was done before is another piece of work: its
    attempts are forgotten. Raises OutsideError."""
    uri = layout.time(run_uri, step, index, share=share)
    try:
        before = _parsed(read_bytes(uri), uri)
    except (Missing, CorruptOutput):
        before = None
    begun = datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    attempts = (*(before.attempts if before and not before.done else ()), Attempt(begun, round(seconds, 3), ended))
    rows, unit = counted(step, metrics or {})
    made = StepTime(step, index, share, attempts, rows, unit)
    write_bytes(uri, (json.dumps(asdict(made), indent=1) + "\n").encode())


def counted(step: str, metrics: Mapping[str, float]) -> tuple[int | None, str]:
    """How much a step with these metrics did, and of what."""
    if step in ("answer", "evaluate"):
        rows = [value for key, value in metrics.items() if key.endswith("/rows")]
        return (int(sum(rows)), "answers") if rows else (None, "")
    key, unit = _COUNTED.get(step, ("", ""))
    return (int(metrics[key]), unit) if key in metrics else (None, "")


def read(run_uri: str) -> list[StepTime]:
    """All records of a run, by the time of their beginning.

    Raises:
        CorruptOutput: one cannot be read.
        OutsideError: the store stays away.
    """
    folder = layout.times(run_uri)
    names = sorted(name for name in open_store(run_uri).list(folder) if name.endswith(".json"))
    found = [_parsed(read_bytes(join(folder, name)), join(folder, name)) for name in names]
    return sorted(found, key=lambda time: (time.attempts[0].started, time.share))


def _parsed(content: bytes, where: str) -> StepTime:
    try:
        tree = json.loads(content)
        attempts = tuple(Attempt(**attempt) for attempt in tree.pop("attempts"))
        if not attempts:
            raise ValueError("no attempt in it")
        return StepTime(**tree, attempts=attempts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptOutput(f"{where}: not a record of a step's time ({error}); delete it") from error
