"""The judge's choices beside those of people, or of an oracle: Table 4.

The figure is the share of rows on which the judge's choice (`verdicts`) is the label. The paper states neither the size
of its sample nor how it was drawn. Ties, rows that nobody could decide and rows without a verdict are left out and
counted [O]; intervals are clustered by video.

Where several people labelled a row, its label is the response that more of them prefer; where they are divided, the row
is left out [O].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from isr_dpo.analyse.annotators import Between, Label, between, first_position, label, majority, word
from isr_dpo.analyse.estimate import Estimate
from isr_dpo.analyse.tables import ReportedAgreement
from isr_dpo.analyse.verdicts import Alignment, alignment, verdict
from isr_dpo.annotate.choices import ORACLE, PEOPLE, Choice
from isr_dpo.annotate.sheet import Side, rows_digest
from isr_dpo.evaluate.statistics import clustered_mean, paired_difference
from isr_dpo.records import Judged


@dataclass(frozen=True)
class Labels:
    """Whose labels, what they look like, and how the judge fares against them."""

    by: str
    """An annotator's name, `people`, or `oracle:<grader>`."""
    labelled: int
    ties: int
    unclear: int
    divided: int
    """Of several people's: rows on which they are divided."""
    first_position: Estimate | None
    """Of the preferences, those for the answer that was shown first."""
    seconds: float | None
    """Median time for a row."""
    judge: Alignment

    @property
    def is_oracle(self) -> bool:
        return self.by.startswith(ORACLE)


@dataclass(frozen=True)
class LabelledRow:
    """A row that somebody labelled."""

    id: str
    video: str
    question: str
    responses: tuple[str, str]
    labels: Mapping[str, str]
    """By annotator: `0` or `1`, the preferred response; `tie` or `unclear`."""
    judge: Side | None
    share: float | None
    """The judge's P(response 0 is better), averaged over the orders."""
    outcome: str
    """Of the judge, as its round recorded it."""


@dataclass(frozen=True)
class RunAgreement:
    """A round of a run, its judge's choices as they are stored against the labels of its own pairs."""

    run: str
    uri: str
    round: int
    context: str
    """The design; `none`: the judge saw no context."""
    labels: tuple[Labels, ...]
    """Those that count first: people's together, else one person's, else an oracle's."""
    between: tuple[Between, ...]
    other_rows: int
    """Labels of other answers than this round's, which are not counted."""
    made_from: Mapping[str, str]
    rows: tuple[LabelledRow, ...]


@dataclass(frozen=True)
class SamePairs:
    """The very same pairs judged by one policy without context, with its own and with another video's description."""

    run: str
    policy: int
    contexts_of: str
    """The run whose descriptions the judge read."""
    by: str
    """Whose labels."""
    without: Alignment
    with_context: Alignment
    difference: Estimate | None
    """With less without, on rows that both decided: paired, by video."""
    changed: int
    """Rows on which the choice is another one."""
    shuffled: Alignment
    """With another video's description: a judge that reads its context falls behind the one without."""


@dataclass(frozen=True)
class Agreement:
    """Table 4 of one run or two, and of the same pairs where they were judged again."""

    round: int
    runs: tuple[RunAgreement, ...]
    difference: Estimate | None
    """Share of the second run less that of the first, each on its own pairs, against labels of the same kind."""
    same_pairs: SamePairs | None
    reported: ReportedAgreement
    kind: Literal["agreement"] = "agreement"


def run_agreement(
    judged: Sequence[Judged],
    choices: Mapping[str, Sequence[Choice]],
    *,
    run: str,
    uri: str,
    round_index: int,
    context: str,
    made_from: Mapping[str, str],
) -> RunAgreement:
    """A round's stored choices against what the annotators chose between its answers."""
    digest, by_id = rows_digest(judged), {row.id: row for row in judged}
    counted = {
        name: {choice.id: choice for choice in chosen if choice.rows_digest == digest and choice.id in by_id}
        for name, chosen in choices.items()
    }
    counted = {name: chosen for name, chosen in counted.items() if chosen}
    people = {name: chosen for name, chosen in counted.items() if not name.startswith(ORACLE)}
    oracles = {name: chosen for name, chosen in counted.items() if name.startswith(ORACLE)}
    labels = [_one(name, chosen, by_id) for name, chosen in [*people.items(), *oracles.items()]]
    if len(people) > 1:
        labels.insert(0, _several(people, by_id))
    names = sorted(counted)
    return RunAgreement(
        run=run,
        uri=uri,
        round=round_index,
        context=context,
        labels=tuple(labels),
        between=tuple(between(a, counted[a], b, counted[b]) for i, a in enumerate(names) for b in names[i + 1 :]),
        other_rows=sum(len(chosen) for chosen in choices.values()) - sum(len(chosen) for chosen in counted.values()),
        made_from=made_from,
        rows=tuple(_row(by_id[i], counted) for i in sorted({i for chosen in counted.values() for i in chosen})),
    )


def labels_of(found: RunAgreement, by: str) -> dict[str, Label]:
    """Labels by row id of whoever `by` names among `found.labels`: a response, or the reason why there is none."""
    said = {row.id: row.labels for row in found.rows}
    if by != PEOPLE:
        return {i: label(labels[by]) for i, labels in said.items() if by in labels}
    people = {i: [s for name, s in labels.items() if not name.startswith(ORACLE)] for i, labels in said.items()}
    return {i: majority(labels) for i, labels in people.items() if labels}


def same_pairs(
    found: RunAgreement,
    *,
    without: Sequence[Judged],
    with_context: Sequence[Judged],
    shuffled: Sequence[Judged],
    policy: int,
    contexts_of: str,
) -> SamePairs:
    """The labelled pairs of `found` as one policy judges them."""
    by = found.labels[0].by
    labels = labels_of(found, by)
    arms = [{row.id: row for row in rows if row.id in labels} for rows in (without, with_context, shuffled)]
    right: list[dict[str, float]] = []
    chosen: list[dict[str, Side]] = []
    for arm in arms[:2]:
        sides = {i: side for i, row in arm.items() if (side := verdict(row).side) is not None}
        chosen.append({i: side for i, side in sides.items() if not isinstance(labels[i], str)})
        right.append({i: float(side == labels[i]) for i, side in chosen[-1].items()})
    common = right[0].keys() & right[1].keys()
    videos = {row.id: row.video for row in found.rows}
    return SamePairs(
        run=found.run,
        policy=policy,
        contexts_of=contexts_of,
        by=by,
        without=alignment(arms[0], labels),
        with_context=alignment(arms[1], labels),
        difference=Estimate.of(paired_difference(right[1], right[0], videos)) if common else None,
        changed=sum(chosen[0][i] != chosen[1][i] for i in common),
        shuffled=alignment(arms[2], labels),
    )


def difference(first: RunAgreement, second: RunAgreement) -> Estimate | None:
    """Share of `second` less that of `first`, each on its own pairs. The runs share videos, so their errors are summed
    by video over both. None where they have no labels of the same kind."""
    pair = _comparable(first, second)
    if pair is None:
        return None
    sides = [_right(run, labels.by) for run, labels in zip((first, second), pair, strict=True)]
    if not all(sides):
        return None
    rows = sum(len(side) for side in sides)
    means = [sum(value for value, _ in side) / len(side) for side in sides]
    spread = clustered_mean(
        [
            sign * rows / len(side) * (value - own)
            for sign, side, own in zip((-1.0, 1.0), sides, means, strict=True)
            for value, _ in side
        ],
        [video for side in sides for _, video in side],
    )
    lead = means[1] - means[0]
    return Estimate.of(spread._replace(mean=lead, low=lead + spread.low, high=lead + spread.high))


def _one(name: str, chosen: Mapping[str, Choice], judged: Mapping[str, Judged]) -> Labels:
    timed = [choice.seconds for choice in chosen.values()]
    return Labels(
        by=name,
        labelled=len(chosen),
        ties=sum(choice.outcome == "tie" for choice in chosen.values()),
        unclear=sum(choice.outcome == "unclear" for choice in chosen.values()),
        divided=0,
        first_position=None if name.startswith(ORACLE) else first_position(chosen.values()),
        seconds=None if name.startswith(ORACLE) else median(timed),
        judge=alignment(judged, {i: label(word(choice)) for i, choice in chosen.items()}),
    )


def _several(people: Mapping[str, Mapping[str, Choice]], judged: Mapping[str, Judged]) -> Labels:
    by_row: dict[str, list[str]] = {}
    for chosen in people.values():
        for i, choice in chosen.items():
            by_row.setdefault(i, []).append(word(choice))
    labels = {i: majority(said) for i, said in by_row.items()}
    everyone = [choice for chosen in people.values() for choice in chosen.values()]
    return Labels(
        by=PEOPLE,
        labelled=len(labels),
        ties=sum(said == "label: tie" for said in labels.values()),
        unclear=sum(said == "label: unclear" for said in labels.values()),
        divided=sum(said == "label: divided" for said in labels.values()),
        first_position=first_position(everyone),
        seconds=median([choice.seconds for choice in everyone]),
        judge=alignment(judged, labels),
    )


def _row(row: Judged, counted: Mapping[str, Mapping[str, Choice]]) -> LabelledRow:
    said = verdict(row)
    return LabelledRow(
        id=row.id,
        video=row.video,
        question=row.prompt,
        responses=row.responses,
        labels={name: word(chosen[row.id]) for name, chosen in counted.items() if row.id in chosen},
        judge=said.side,
        share=said.share,
        outcome=row.outcome,
    )


def _comparable(first: RunAgreement, second: RunAgreement) -> tuple[Labels, Labels] | None:
    """Labels of the same kind that both have: people's, else the same oracle's."""
    kinds: list[Callable[[Labels], bool]] = [lambda labels: not labels.is_oracle]
    kinds += [lambda labels, by=labels.by: labels.by == by for labels in first.labels if labels.is_oracle]  # type: ignore[misc]
    for fits in kinds:
        a, b = (next((labels for labels in run.labels if fits(labels)), None) for run in (first, second))
        if a is not None and b is not None:
            return a, b
    return None


def _right(run: RunAgreement, by: str) -> list[tuple[float, str]]:
    """Whether the judge is right, and the video, of every row that is compared."""
    labels, rows = labels_of(run, by), {row.id: row for row in run.rows}
    return [
        (float(rows[i].judge == label), rows[i].video)
        for i, label in sorted(labels.items())
        if not isinstance(label, str) and rows[i].judge is not None
    ]
