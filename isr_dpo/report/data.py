"""All that the page shows, gathered from the files of one run or several."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from isr_dpo import layout, times
from isr_dpo.analyse import designs as context_designs
from isr_dpo.analyse import lengths as word_lengths
from isr_dpo.analyse import tables, trajectories
from isr_dpo.analyse.designs import Designs
from isr_dpo.analyse.lengths import Lengths
from isr_dpo.analyse.trajectories import Trajectories
from isr_dpo.config import Recipe
from isr_dpo.evaluate.account import NOTHING, Account, Amount, Ceilings, total
from isr_dpo.manifest import files, find
from isr_dpo.report import flips, samples
from isr_dpo.report.costly import Costly, costly
from isr_dpo.report.failure import Failure, recorded
from isr_dpo.report.flips import Flips
from isr_dpo.report.headline import graded_by
from isr_dpo.report.pictures import Pictures
from isr_dpo.report.reading import KeptRun
from isr_dpo.report.samples import Samples
from isr_dpo.report.summary import PolicySummary, Summary, summarise
from isr_dpo.times import StepTime

SHOWN_VIDEOS = 3
"""Whose descriptions and answers are followed over the iterations."""


@dataclass(frozen=True)
class LogLine:
    """An optimiser step."""

    loss: float
    reward_accuracy: float
    margin: float


@dataclass(frozen=True)
class RunData:
    """A run, as far as it has come."""

    run: KeptRun
    summary: Summary
    grader: str
    """Whoever graded the leading set, in words."""
    failure: Failure | None
    training: Mapping[int, tuple[LogLine, ...]]
    """The optimiser steps of each finished round; round 0 is the seed DPO."""
    lengths: Lengths | None
    trajectories: Trajectories | None
    times: tuple[StepTime, ...]
    """Without those of making this page."""
    pending: tuple[str, ...]
    """Policies and sets whose answers wait for the grader."""
    spent: Amount
    """On the grader, at the most, by the run's account."""
    costly: Costly
    """Analyses that cost a grader or a person."""

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe


@dataclass(frozen=True)
class Page:
    """What `render` draws."""

    runs: tuple[RunData, ...]
    made: str
    """When, in words."""
    paper: tuple[tables.Table, ...]
    """The paper's tables, ours beside the reported values."""
    designs: Designs | None
    """None with one run."""
    samples: Samples
    flips: Flips
    pictures: Pictures


def gather(runs: Sequence[KeptRun], *, made: str, failure: Failure | None = None) -> Page:
    """The page of `runs`. `failure` is the first one's, if any; without it its failed.json counts.

    Raises:
        OutsideError: a store stays away.
    """
    shown = tuple(_run(run, failure if number == 0 else None) for number, run in enumerate(runs))
    page = Page(
        runs=shown,
        made=made,
        paper=tuple(tables.table(number, runs) for number in tables.NUMBERS),
        designs=context_designs.designs(runs) if len(runs) > 1 and any(run.context for run in runs) else None,
        samples=samples.gather(runs),
        flips=flips.gather(runs),
        pictures=Pictures(),
    )
    _illustrate(page)
    return page


def _run(run: KeptRun, failure: Failure | None) -> RunData:
    logs = {index: _log(run, index) for index in range(run.recipe.iterations)}
    around = run.damage.around
    prepared = around(lambda: find(layout.dataset(run.uri))) is not None
    return RunData(
        run=run,
        summary=around(lambda: summarise(run.uri, run.recipe)) or _empty(run.recipe),
        grader=_grader(run),
        failure=failure or recorded(run.uri),
        training={index: lines for index, lines in logs.items() if lines},
        lengths=around(lambda: word_lengths.lengths(run)),
        trajectories=around(lambda: _followed(run)) if prepared else None,
        times=tuple(time for time in around(lambda: times.read(run.uri)) or () if time.step != "report"),
        pending=tuple(around(lambda: _pending(run)) or ()),
        spent=around(lambda: _spent(run)) or NOTHING,
        costly=costly(run),
    )


def _empty(recipe: Recipe) -> Summary:
    policies = tuple(PolicySummary(index) for index in recipe.policies)
    return Summary(name=recipe.name, dev=recipe.leading_set, dataset={}, policies=policies)


def _followed(run: KeptRun) -> Trajectories:
    return trajectories.trajectories(run, name=run.recipe.leading_set, count=SHOWN_VIDEOS)


def _grader(run: KeptRun) -> str:
    """Whoever graded the leading set, in words; whom the recipe asks while none is graded."""
    graded = (run.graded(index, run.recipe.leading_set) for index in run.policies)
    labels = dict.fromkeys(made.grader.label for made in graded if made is not None)
    return graded_by(*labels) if labels else graded_by(asked(run.recipe))


def _spent(run: KeptRun) -> Amount:
    return total(Account(layout.account(run.uri), Ceilings(None, None)).spenders().values())


def _pending(run: KeptRun) -> list[str]:
    return [
        f"{layout.policy_name(index)} on {name}"
        for index in run.policies
        for name in run.recipe.sets_at(index)
        if find(run.answers_uri(index, name)) is not None
        and find(layout.graded(run.uri, index, run.recipe.protocol(name), name)) is None
    ]


def asked(recipe: Recipe) -> str:
    """Whom the recipe would have grade, in words."""
    return "rule-based grader (no model)" if recipe.evaluate.grader == "rules" else recipe.evaluate.model


def _log(run: KeptRun, index: int) -> tuple[LogLine, ...]:
    return run.damage.around(lambda: _lines(layout.round_output(run.uri, index, "training"))) or ()


def _lines(uri: str) -> tuple[LogLine, ...]:
    manifest = find(uri)
    if manifest is None or "log.jsonl" not in manifest.files:
        return ()
    trees = map(json.loads, (files(manifest, {"log.jsonl"}) / "log.jsonl").read_text().splitlines())
    return tuple(LogLine(tree["loss"], tree["reward_accuracy"], tree["margin"]) for tree in trees)


def _illustrate(page: Page) -> None:
    """Takes the frames of what is shown, a share for every run: first what is followed, then samples and flips by
    turns."""
    for data in page.runs:
        followed = data.trajectories
        first = [one.video for one in followed.videos] if followed is not None else []
        first += [one.video for one in followed.questions] if followed is not None else []
        judged = [one.row.video for one in page.samples.shown if one.run is data.run]
        flipped = [one.video for one in page.flips.questions if one.run is data.run]
        by_turns = [video for pair in zip_longest(flipped, judged) for video in pair if video is not None]
        page.pictures.show(data.run, (*first, *by_turns), share=1 / len(page.runs))
