"""All that the page shows, gathered from the run's files alone. A piece that is not there yet is left out; a damaged
one is left out and named, so that the report of a failed run stands."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from isr_dpo import layout
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameStore
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import files, find
from isr_dpo.records import Context, Judged, Row, read_files
from isr_dpo.report.headline import grader_label
from isr_dpo.report.samples import Sample, choose, sample
from isr_dpo.report.summary import PolicySummary, Summary, summarise
from isr_dpo.stores import Missing, read_bytes

POLICY_STEPS = ("answer", "evaluate", "register", "report")
WAY_OUT = {
    "RecipeError": "Mend the recipe, then run again.",
    "DataError": "Mend the data, then run again.",
    "StaleOutput": "Use another run URI, or delete what the message names.",
    "CorruptOutput": "Delete what the message names, then run again.",
    "RunBusy": "Wait for the other run, or stop it.",
    "GuardTripped": "Look at the trend below: the loop was stopped before it burnt a round.",
    "ModelError": "Use another model, or smaller settings.",
    "StoreError": "Make room or give access, then run the same command again: finished work stands.",
    "OutsideError": "A service was away. Run the same command again: finished work stands.",
}
T = TypeVar("T")
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Failure:
    """Why a run stopped; the keys of failed.json."""

    step: str
    index: int
    error: str
    """The error's class."""
    message: str
    run_id: str = ""
    retry: bool = False

    @property
    def place(self) -> str:
        """Step and round, or step and policy."""
        if self.step in POLICY_STEPS:
            return f"{self.step}, {layout.policy_name(self.index)}"
        if self.step == "train" and self.index == 0:
            return "train, seed DPO"
        return f"{self.step}, round {self.index}" if self.index else self.step

    @property
    def way_out(self) -> str:
        first = "" if self.retry else "Once the cause is mended, "
        again = f"{first}run the same command again: it goes on from what is finished."
        return WAY_OUT.get(self.error, again[0].upper() + again[1:])


@dataclass(frozen=True)
class LogLine:
    """An optimiser step."""

    loss: float
    reward_accuracy: float
    margin: float


@dataclass(frozen=True)
class Page:
    """What `render` draws."""

    summary: Summary
    recipe: Recipe
    run_uri: str
    made: str
    """When, in words."""
    grader: str
    failure: Failure | None
    damaged: tuple[str, ...]
    """Messages about files that differ from their manifests."""
    training: Mapping[int, tuple[LogLine, ...]]
    """The optimiser steps of each finished round; round 0 is the seed DPO."""
    sample_round: int | None
    """The latest judged round."""
    samples: tuple[Sample, ...]


class _Damage:
    """Collects what is wrong with files while the rest is read on."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def around(self, read: Callable[[], T]) -> T | None:
        """What `read` returns; None where it meets a file that differs from its manifest."""
        try:
            return read()
        except CorruptOutput as error:
            if str(error) not in self.messages:
                self.messages.append(str(error))
            return None


def gather(run_uri: str, recipe: Recipe, *, made: str, failure: Failure | None = None) -> Page:
    """The run's page. Without `failure`, the run's failed.json counts.

    Raises:
        OutsideError: the store stays away.
    """
    damage = _Damage()
    logs = {i: damage.around(functools.partial(_log, run_uri, i)) for i in range(recipe.iterations)}
    sample_round = damage.around(lambda: _latest_judged(run_uri, recipe))
    return Page(
        summary=damage.around(lambda: summarise(run_uri, recipe)) or _empty(recipe),
        recipe=recipe,
        run_uri=run_uri,
        made=made,
        grader=damage.around(lambda: grader(run_uri, recipe)) or grader_label(*_asked_grader(recipe)),
        failure=failure or _failed(run_uri),
        training={index: lines for index, lines in logs.items() if lines},
        sample_round=sample_round,
        samples=() if sample_round is None else _samples(run_uri, sample_round, damage),
        damaged=tuple(damage.messages),
    )


def _empty(recipe: Recipe) -> Summary:
    policies = tuple(PolicySummary(index) for index in recipe.policies)
    return Summary(name=recipe.name, dev=recipe.leading_set, dataset={}, policies=policies)


def _failed(run_uri: str) -> Failure | None:
    try:
        tree: dict[str, Any] = json.loads(read_bytes(layout.failure(run_uri)))
    except Missing:
        return None
    return Failure(**{name: tree[name] for name in Failure.__dataclass_fields__ if name in tree})


def _asked_grader(recipe: Recipe) -> tuple[str, str | None]:
    asked = recipe.evaluate
    return asked.grader, None if asked.grader == "rules" else asked.model


def grader(run_uri: str, recipe: Recipe) -> str:
    """Whoever graded the policies, in words; the recipe's grader while none is graded.

    Raises:
        CorruptOutput: a protocol.json differs from its manifest.
    """
    named: list[str] = []
    dev = recipe.leading_set
    for index in recipe.policies:
        manifest = find(layout.graded(run_uri, index, recipe.protocol(dev), dev))
        if manifest is not None and "protocol.json" in manifest.files:
            protocol = json.loads((files(manifest, {"protocol.json"}) / "protocol.json").read_bytes())
            named.append(grader_label(protocol["grader"], protocol["model"]))
    return " and ".join(dict.fromkeys(named)) or grader_label(*_asked_grader(recipe))


def _log(run_uri: str, index: int) -> tuple[LogLine, ...]:
    manifest = find(layout.round_output(run_uri, index, "training"))
    if manifest is None or "log.jsonl" not in manifest.files:
        return ()
    trees = map(json.loads, (files(manifest, {"log.jsonl"}) / "log.jsonl").read_text().splitlines())
    return tuple(LogLine(tree["loss"], tree["reward_accuracy"], tree["margin"]) for tree in trees)


def _latest_judged(run_uri: str, recipe: Recipe) -> int | None:
    finished = (
        index
        for index in range(recipe.iterations - 1, 0, -1)
        if find(layout.round_output(run_uri, index, "preferences")) is not None
    )
    return next(finished, None)


def _samples(run_uri: str, index: int, damage: _Damage) -> tuple[Sample, ...]:
    rows = choose(damage.around(lambda: _judged(run_uri, index)) or [])
    now = damage.around(lambda: _contexts(run_uri, index)) or {}
    before = damage.around(lambda: _contexts(run_uri, index - 1)) or {}
    if not now:  # a fixed context is round 1's for ever
        now, before = damage.around(lambda: _contexts(run_uri, 1)) or {}, {}
    frames = damage.around(lambda: _frames(run_uri, {row.video for row in rows})) or {}
    return tuple(sample(row, now=now, before=before, frames=frames.get(row.video)) for row in rows)


def _judged(run_uri: str, index: int) -> list[Judged]:
    return _rows(layout.round_output(run_uri, index, "preferences"), "judged-", Judged)


def _contexts(run_uri: str, index: int) -> dict[str, str]:
    return {row.video: row.context for row in _rows(layout.round_output(run_uri, index, "contexts"), "part-", Context)}


def _rows(uri: str, prefix: str, row_type: type[R]) -> list[R]:
    """Rows of an output's files of that prefix; none where it is not complete."""
    manifest = find(uri)
    if manifest is None:
        return []
    names = {name for name in manifest.files if name.startswith(prefix)}
    return read_files(files(manifest, names), names, row_type)


def _frames(run_uri: str, videos: Collection[str]) -> dict[str, np.ndarray]:
    """Frames by video, of those at hand; only the shards that hold them are fetched and verified."""
    manifest = find(layout.frames(run_uri))
    if manifest is None:
        return {}
    store = FrameStore(files(manifest, [name for name in manifest.files if name.startswith("index-")]))
    known = set(videos) & set(store.videos())
    files(manifest, {store.describe(video).shard for video in known})
    return {video: store.read(video) for video in sorted(known)}
