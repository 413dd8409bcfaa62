"""Two systems as they are named on a command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from isr_dpo.errors import DataError

if TYPE_CHECKING:
    from isr_dpo.analyse.compared import System
    from isr_dpo.analyse.runs import Run

SYSTEM = "RUN, or RUN:policy such as runs/demo:3 (default: the newest {done} policy)"
_SYSTEM = re.compile(r"(?P<run>.+?)(?::(?:policy-)?(?P<policy>[0-9]{1,2}))?")


def two_systems(first: str, second: str, *, has: Callable[[Run, int], bool], done: str) -> tuple[System, System]:
    """The systems that `first` and `second` name; where they name no policy the newest that `has` what is needed, in a
    word `done`.

    Raises:
        DataError: no such run or policy, none that is `done`, or twice the same.
    """
    from isr_dpo.analyse.runs import open_run, open_runs

    named = [match.groupdict() for text in (first, second) if (match := _SYSTEM.fullmatch(text)) is not None]
    uris = [each["run"].rstrip("/") for each in named]
    runs = [open_run(uris[0])] * 2 if uris[0] == uris[1] else open_runs(uris)
    a, b = (_system(run, each["policy"], has, done) for run, each in zip(runs, named, strict=True))
    if a == b:
        raise DataError(f"{first} and {second} are the same policy; name others, such as {uris[0]}:1 {uris[1]}:2")
    return a, b


def known_policy(run: Run, policy: int) -> int:
    """`policy`. Raises DataError: the run has no such one."""
    if policy not in run.policies:
        raise DataError(f"{run.uri}: no policy {policy}; it has {run.policies[0]} to {run.policies[-1]}")
    return policy


def _system(run: Run, policy: str | None, has: Callable[[Run, int], bool], done: str) -> System:
    from isr_dpo.analyse.compared import System

    if policy is not None:
        return System(run, known_policy(run, int(policy)))
    found = next((p for p in reversed(run.policies) if has(run, p)), None)
    if found is None:
        raise DataError(f"{run.uri}: no policy of it is {done} yet")
    return System(run, found)
