"""Retention: a finished run keeps what people and other runs may ask for, and its large files go.

Kept: the weights of every policy that has an alias in the registry (champion, previous, challenger), of the best of the
run, of those graded on all sets (evaluate.full_at), of the newest, of those that the run itself has yet to read, of
those that other runs start from, and of those named; the newest masters and, of a round in training, checkpoints; all
rows, manifests, grades and pages. A policy whose weights went says so (removed.py). The run's lock is held meanwhile,
so that nothing of a live run is touched.

    kept       who needs which policy
    survey     what may go
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from isr_dpo import removed
from isr_dpo.errors import DataError
from isr_dpo.gc.kept import Registry, forks
from isr_dpo.gc.survey import Removal, Survey
from isr_dpo.record import recipe_of
from isr_dpo.stores import open_store
from isr_dpo.stores.lock import Lock, owner
from isr_dpo.stores.surveyed import abort

__all__ = ["Plan", "collect", "plan"]


@dataclass(frozen=True)
class Plan:
    """What stays of a run, with the reasons by policy, and what goes."""

    run_uri: str
    kept: Mapping[int, tuple[str, ...]]
    removals: tuple[Removal, ...]

    @property
    def size(self) -> int:
        """Bytes that go."""
        return sum(removal.size for removal in self.removals)


def plan(run_uri: str, *, registry: Registry, keep: Collection[int] = ()) -> Plan:
    """What `collect` would remove. Changes nothing.

    Args:
        keep: more policies whose weights stay.

    Raises:
        DataError: there is no run, or no finished policy of a number in `keep`.
        CorruptOutput: a manifest cannot be read.
        OutsideError, StoreError: a store is away, this run's or that of one that may start from it.
    """
    recipe = recipe_of(run_uri)
    survey = Survey(run_uri)
    unknown = sorted(set(keep) - survey.policies.keys())
    if unknown:
        known = ", ".join(str(index) for index in sorted(survey.policies)) or "none"
        raise DataError(f"{run_uri}: --keep {unknown[0]}: no such policy of its own; it has {known}")
    reasons: dict[int, list[str]] = {index: [] for index in survey.policies}
    for index in survey.policies:
        reasons[index] += ["newest"] if index == survey.newest else []
        reasons[index] += ["not answered for yet"] if survey.awaits_answers(index, recipe) else []
        anchors = recipe.train.reference == "initial" and survey.newest < recipe.iterations
        reasons[index] += ["train.reference of rounds to come"] if anchors and index == 1 else []
        reasons[index] += ["evaluate.full_at"] if index in recipe.evaluate.full_at else []
        reasons[index] += ["--keep"] if index in keep else []
    for needed in (registry.policies(run_uri), forks(run_uri, registry.runs)):
        for index, why in needed.items():
            if index in reasons:
                reasons[index] += why
    kept = {index: tuple(dict.fromkeys(why)) for index, why in sorted(reasons.items()) if why}
    return Plan(run_uri, kept, tuple(survey.removals(kept)))


def collect(run_uri: str, *, registry: Registry, run_id: str, keep: Collection[int] = ()) -> Plan:
    """Removes what the plan, made under the run's lock, names; cut at any point, the next call goes on.

    Args:
        run_id: a new one, which no part of the run has.

    Raises:
        RunBusy: the run is alive.
        (and what `plan` raises)
    """
    recipe_of(run_uri)  # a lock would make a folder of what is no run
    with owner(run_uri, run_id) as lock:
        made = plan(run_uri, registry=registry, keep=keep)
        for removal in made.removals:
            _remove(removal, lock)
    return made


def _remove(removal: Removal, lock: Lock) -> None:
    lock.check()
    if removal.names:
        removed.remove(removal.uri, removal.names, why=removal.reason)
    elif removal.upload is not None:
        abort(removal.upload)
    elif removal.reason == "this machine's cache":
        shutil.rmtree(removal.uri, ignore_errors=True)
    else:
        open_store(removal.uri).delete(removal.uri)
