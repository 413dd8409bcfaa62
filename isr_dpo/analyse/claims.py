"""Verbosity hallucination itself (Figure 2): what answers claim that the ground-truth caption does not support.

A grader lists an answer's claims, each a stretch of the answer with a verdict. The reading is strict: a reply whose
stretches do not stand in the answer, letter by letter and apart from each other, leaves the answer *unscored*. Counts
stand beside words, their proxy: an answer may be long and grounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from isr_dpo.analyse.asking import Bill, answers, bill, questions, who
from isr_dpo.analyse.claims_protocol import ClaimsProtocol, Stated, shown
from isr_dpo.analyse.estimate import Estimate, mean, ratio
from isr_dpo.analyse.runs import GraderInfo, Run
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Reply
from isr_dpo.evaluate.protocol import Task
from isr_dpo.evaluate.statistics import paired_difference
from isr_dpo.records import TestRow


@dataclass(frozen=True)
class Claim:
    """A claim of an answer: its characters `start` to `end`."""

    text: str
    start: int
    end: int
    supported: bool


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer, for a page that colours it."""

    text: str
    verdict: Literal["", "supported", "unsupported"]


def located(answer: str, stated: Sequence[Stated]) -> tuple[Claim, ...] | None:
    """The claims where they stand in `answer`, each at its first place that no other has taken, in the answer's order;
    None where one is empty or finds no such place."""
    claims: list[Claim] = []
    for span, supported in stated:
        start = answer.find(span) if span.strip() else -1
        while start >= 0 and any(start < claim.end and claim.start < start + len(span) for claim in claims):
            start = answer.find(span, start + 1)
        if start < 0:
            return None
        claims.append(Claim(span, start, start + len(span), supported))
    return tuple(sorted(claims, key=lambda claim: claim.start))


def pieces(answer: str, claims: Sequence[Claim]) -> tuple[Piece, ...]:
    """The whole answer in order, cut where claims begin and end."""
    cut: list[Piece] = []
    at = 0
    for claim in claims:
        cut.append(Piece(answer[at : claim.start], ""))
        cut.append(Piece(claim.text, "supported" if claim.supported else "unsupported"))
        at = claim.end
    return tuple(piece for piece in (*cut, Piece(answer[at:], "")) if piece.text)


@dataclass(frozen=True)
class Examined:
    """An answer with its claims."""

    policy: int
    id: str
    video: str
    question: str
    truth: str
    caption: str
    answer: str
    """As the grader was shown it; claims count its characters."""
    claims: tuple[Claim, ...] | None
    """None: unscored."""
    why: str = ""
    """It is unscored."""

    @property
    def unsupported(self) -> int:
        return sum(not claim.supported for claim in self.claims or ())


@dataclass(frozen=True)
class PolicyClaims:
    """A policy's figures, over its scored answers; None where there is none."""

    policy: int
    answers: int
    unscored: int
    words: Estimate | None
    """An answer, mean."""
    claims: Estimate | None
    """An answer, mean."""
    unsupported: Estimate | None
    """Claims an answer that nothing supports, mean."""
    any_unsupported: Estimate | None
    """Share of answers with such a claim."""
    unsupported_share: Estimate | None
    """Of all claims."""
    unsupported_change: Estimate | None = None
    """Against the first of the policies, on the answers that both have scored; None for the first itself."""


@dataclass(frozen=True)
class Claims:
    """Of a run's policies, on the same questions."""

    run: str
    uri: str
    context: str
    set: str
    grader: GraderInfo
    limit: int | None
    """Questions drawn; None: all."""
    seed: int
    bill: Bill
    made_from: Mapping[str, str]
    """Digests of the answers by policy."""
    policies: tuple[PolicyClaims, ...]
    rows: tuple[Examined, ...]
    """By policy, then by question."""
    kind: Literal["claims"] = "claims"


def claims(
    run: Run,
    grader: Grader,
    *,
    name: str,
    policies: Sequence[int],
    limit: int | None = None,
    seed: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Claims:
    """Asks `grader` for the claims of the policies' answers to the set `name`, or to `limit` questions of it drawn by
    `seed`.

    Raises:
        DataError: a policy has not answered the set, or the set has no captions.
        OutsideError: the grader stays away; what it has said stands in the ledger, so run again.
    """
    protocol = ClaimsProtocol()
    rows = questions(run, name, limit=limit, seed=seed)
    bare = [row.id for row in rows if not row.caption]
    if bare:
        raise DataError(f"set {name}: row {bare[0]!r} has no caption, against which claims are held")
    said = {policy: answers(run, policy, name) for policy in policies}
    asked = [(policy, row) for policy in policies for row in rows if said[policy][row.id] is not None]
    progress(len(policies) * len(rows) - len(asked))
    replies = grader.grade(protocol, [_task(row, said[policy][row.id] or "") for policy, row in asked], progress)
    reply_of = {(policy, row.id): reply for (policy, row), reply in zip(asked, replies, strict=True)}
    examined = [
        _examined(policy, row, said[policy][row.id], reply_of.get((policy, row.id)), protocol)
        for policy in policies
        for row in rows
    ]
    return Claims(
        run=run.name,
        uri=run.uri,
        context=run.context,
        set=name,
        grader=who(grader, protocol, replies),
        limit=limit,
        seed=seed,
        bill=bill(replies),
        made_from={str(policy): run.digest(run.answers_uri(policy, name)) for policy in policies},
        policies=measure(examined),
        rows=tuple(examined),
    )


def measure(rows: Sequence[Examined]) -> tuple[PolicyClaims, ...]:
    """The figures of every policy of `rows`, in their order."""
    by_policy: dict[int, list[Examined]] = {}
    for row in rows:
        by_policy.setdefault(row.policy, []).append(row)
    first = next(iter(by_policy.values()), [])
    return tuple(_figures(policy, of, first) for policy, of in by_policy.items())


def _figures(policy: int, rows: Sequence[Examined], first: Sequence[Examined]) -> PolicyClaims:
    scored = [row for row in rows if row.claims is not None]
    videos = [row.video for row in scored]
    count = [float(len(row.claims or ())) for row in scored]
    unsupported = [float(row.unsupported) for row in scored]
    return PolicyClaims(
        policy=policy,
        answers=len(rows),
        unscored=len(rows) - len(scored),
        words=mean([float(len(row.answer.split())) for row in scored], videos),
        claims=mean(count, videos),
        unsupported=mean(unsupported, videos),
        any_unsupported=mean([float(n > 0) for n in unsupported], videos, within=(0.0, 1.0)),
        unsupported_share=ratio(unsupported, count, videos),
        unsupported_change=None if rows is first else _change(rows, first),
    )


def _change(rows: Sequence[Examined], first: Sequence[Examined]) -> Estimate | None:
    now, before = ({row.id: float(row.unsupported) for row in of if row.claims is not None} for of in (rows, first))
    if not now.keys() & before.keys():
        return None
    return Estimate.of(paired_difference(now, before, {row.id: row.video for row in rows}))


def _task(row: TestRow, answer: str) -> Task:
    return Task(question=row.question, truth=row.answer, prediction=answer, caption=row.caption or "")


def _examined(policy: int, row: TestRow, answer: str | None, reply: Reply | None, protocol: ClaimsProtocol) -> Examined:
    text = shown(answer or "")
    found: tuple[Claim, ...] | None = None
    why = "the model could not be asked"
    if reply is not None and reply.failure is not None:
        why = reply.failure
    elif reply is not None:
        stated = protocol.read(reply.text)
        found = None if stated is None else located(text, stated)
        why = "" if found is not None else f"not in the asked form, or not in the answer's words: {reply.text}"
    return Examined(policy, row.id, row.video, row.question, row.answer, row.caption or "", text, found, why)
