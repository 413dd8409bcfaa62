"""What the analyses that ask a grader share: who was asked about which questions, and what it cost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isr_dpo.analyse.runs import GraderInfo, Run
from isr_dpo.errors import DataError
from isr_dpo.evaluate import Grader, Reply
from isr_dpo.evaluate.protocol import GradingProtocol
from isr_dpo.records import TestRow, seed_for


@dataclass(frozen=True)
class Bill:
    """What an analysis asked for. `bought` were paid for now, at `cost_usd`; the ledger or the rules had the rest."""

    asked: int
    bought: int
    cost_usd: float


def bill(replies: Sequence[Reply]) -> Bill:
    """One reply may serve several equal tasks: it was bought once."""
    bought = {reply.key or str(number): reply for number, reply in enumerate(replies) if reply.bought}
    return Bill(len(replies), len(bought), sum(reply.cost_usd for reply in bought.values()))


def who(grader: Grader, protocol: GradingProtocol[Any], replies: Sequence[Reply]) -> GraderInfo:
    """The grader with this protocol's prompt."""
    return GraderInfo(
        name=grader.name,
        model=grader.model,
        protocol=protocol.name,
        prompt_digest=None if grader.model is None else protocol.prompt_digest,
        served_models=tuple(sorted({reply.model for reply in replies if reply.model is not None})),
    )


def questions(run: Run, name: str, *, limit: int | None, seed: int) -> list[TestRow]:
    """Questions of a set by id: all, or `limit` of them drawn by `seed`, the same for every policy and every run that
    has these questions.

    Raises:
        DataError: the run has no such set.
    """
    rows = sorted(run.test_rows(name), key=lambda row: row.id)
    if limit is None or limit >= len(rows):
        return rows
    return sorted(random.Random(seed_for(seed, "questions")).sample(rows, limit), key=lambda row: row.id)


def answers(run: Run, policy: int, name: str) -> dict[str, str | None]:
    """A policy's answer by question of the set; None where the model could not be asked.

    Raises:
        DataError: the policy has not answered the set.
    """
    predictions = run.predictions(policy, name)
    if predictions is None:
        raise DataError(f"{run.answers_uri(policy, name)}: no finished answers there; `isr-dpo answer` makes them")
    return {
        made.id: made.model_prediction.message if made.model_prediction.status == "success" else None
        for made in predictions
    }
