"""Judge: the policy chooses between its own two responses, given video, question and context (section 3.1).

Both orders are asked and the labels' probabilities averaged, as in Lee et al. (2023), the paper's reference for the
choice. A row that yields no preference says why: identical or empty responses, one that is written at the judge, a
prompt that the model cannot be asked, a tie, orders that disagree (where the recipe drops those), a verdict that cannot
be read. None of them ever makes a rejected response.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from isr_dpo.config import Judge
from isr_dpo.engines import Choose, Engine, Progress, Sample
from isr_dpo.prompts import Prompts, Template, hostile
from isr_dpo.records import NOT_ASKED, Judged, Responses, seed_for

LABELS = ("1", "2")
_VERDICT = re.compile(r"\s*(?:answer\s*)?([12])\s*[.)]?\s*", re.IGNORECASE)
Probabilities = tuple[float, float]


def judge(
    rows: Sequence[Responses],
    engine: Engine,
    *,
    contexts: Mapping[str, str] | None,
    prompts: Prompts,
    settings: Judge,
    seed: int,
    round_index: int,
    progress: Progress = lambda _: None,
) -> list[Judged]:
    """A verdict or a reason for each row. `contexts` gives c_t by video; None: the judge sees none (self-rewarding)."""
    reasons = [_unjudgeable(row) for row in rows]
    asked = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    progress(len(rows) - len(asked))
    if settings.by == "self":
        verdicts = iter(_ask(asked, contexts, engine, prompts, settings, seed, round_index, progress))
    else:
        verdicts = iter([_control(row, settings.by, seed, round_index) for row in asked])
        progress(len(asked))
    return [
        _judged(row, contexts, outcome=reason) if reason else _judged(row, contexts, **next(verdicts))
        for row, reason in zip(rows, reasons, strict=True)
    ]


def _unjudgeable(row: Responses) -> str | None:
    first, second = (text.strip() for text in row.responses)
    not_asked = next((finish for finish in row.finish if finish in NOT_ASKED), None)
    if not_asked or not first or not second:
        return not_asked or "empty"
    if hostile(first) or hostile(second):
        return "hostile"
    return "identical" if first == second else None


def _judged(row: Responses, contexts: Mapping[str, str] | None, **verdict: Any) -> Judged:
    context = contexts[row.video] if contexts is not None else None
    return Judged(id=row.id, video=row.video, prompt=row.prompt, responses=row.responses, context=context, **verdict)


def _ask(
    rows: Sequence[Responses],
    contexts: Mapping[str, str] | None,
    engine: Engine,
    prompts: Prompts,
    settings: Judge,
    seed: int,
    round_index: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    template = prompts.judge if contexts is None else prompts.judge_context
    orders = ((0, 1), (1, 0)) if settings.orders == "both" else ((0, 1),)
    texts = [_prompt(template, row, contexts, order) for row in rows for order in orders]
    videos = [row.video for row in rows for _ in orders]

    answered = 0

    def count(done: int) -> None:
        nonlocal answered
        before, answered = answered, answered + done
        progress(answered // len(orders) - before // len(orders))

    if settings.verdict == "logits":
        choices = engine.choose(
            [Choose(v, t, LABELS, template.rationale_tokens, template.cue) for v, t in zip(videos, texts, strict=True)],
            count,
        )
        shown = [(c.probabilities, c.rationale, c.finish) for c in choices]
    else:
        seeds = [seed_for(seed, "judge", round_index, row.id, *order) for row in rows for order in orders]
        limit = template.rationale_tokens + 16
        requests = [
            Sample(v, t, (s,), settings.temperature, 1.0, limit) for v, t, s in zip(videos, texts, seeds, strict=True)
        ]
        texts_drawn = [text for (text,) in engine.sample(requests, count)]
        shown = [(parse_verdict(text.text, cue=template.cue), text.text, text.finish) for text in texts_drawn]
    each = len(orders)
    return [_verdict(shown[start : start + each], orders, settings) for start in range(0, len(shown), each)]


def _verdict(
    answers: Sequence[tuple[Probabilities, str, str]], orders: Sequence[tuple[int, int]], settings: Judge
) -> dict[str, Any]:
    """Of one row, from (probabilities, rationale, finish) in each of `orders`."""
    for _, _, finish in answers:
        if finish in NOT_ASKED:
            return {"outcome": finish}
    probabilities = tuple(
        p if order == (0, 1) else (p[1], p[0]) for order, (p, _, _) in zip(orders, answers, strict=True)
    )
    rationales = tuple(text for _, text, _ in answers)
    return {**decide(probabilities, settings), "probabilities": probabilities, "rationales": rationales}


def _prompt(template: Template, row: Responses, contexts: Mapping[str, str] | None, order: tuple[int, int]) -> str:
    values = {"question": row.prompt, "answer_1": row.responses[order[0]], "answer_2": row.responses[order[1]]}
    if contexts is not None:
        values["context"] = contexts[row.video]
    return template.render(**values)


def decide(probabilities: Sequence[Probabilities], settings: Judge) -> dict[str, Any]:
    """Outcome and winner from each order's (p_first, p_second), in the responses' own order.

    P(first) = mean over orders of p_first / (p_first + p_second).
    """
    if any(first + second <= max(settings.min_label_mass, 0.0) for first, second in probabilities):
        return {"outcome": "unparsed"}
    shares = [first / (first + second) for first, second in probabilities]
    share = sum(shares) / len(shares)
    if abs(share - 0.5) <= settings.tie_margin:
        return {"outcome": "tie"}
    if settings.drop_inconsistent and len({s > 0.5 for s in shares}) > 1:
        return {"outcome": "inconsistent"}
    return {"outcome": "preferred", "winner": 0 if share > 0.5 else 1}


def parse_verdict(text: str, *, cue: str) -> Probabilities:
    """(1, 0) or (0, 1) from a written verdict; (0, 0), so unparsed, unless all that stands (after the last cue, where
    one is written) is a label."""
    match = _VERDICT.fullmatch(text.rpartition(cue)[2] if cue else text)
    if match is None:
        return (0.0, 0.0)
    return (1.0, 0.0) if match.group(1) == LABELS[0] else (0.0, 1.0)


def _control(row: Responses, by: str, seed: int, round_index: int) -> dict[str, Any]:
    if by == "random":
        return {
            "outcome": "preferred",
            "winner": random.Random(seed_for(seed, "judge", round_index, row.id)).randrange(2),
        }
    first, second = (len(text.split()) for text in row.responses)
    if first == second:
        return {"outcome": "tie"}
    return {"outcome": "preferred", "winner": 0 if first > second else 1}
