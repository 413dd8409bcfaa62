"""Generate: y1, y2 ~ pi_t(V, x), two draws a question at high temperature (section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

from isr_dpo.config import Generate
from isr_dpo.engines import Engine, Progress, Sample
from isr_dpo.prompts import Template
from isr_dpo.records import NOT_ASKED, Question, Responses, seed_for


def generate(
    rows: Sequence[Question],
    engine: Engine,
    *,
    template: Template,
    settings: Generate,
    seed: int,
    round_index: int,
    progress: Progress = lambda _: None,
) -> list[Responses]:
    """Two responses to each question; draw d of a row uses the seed of (run seed, round, row id, d)."""
    seeds = [tuple(seed_for(seed, "generate", round_index, row.id, draw) for draw in (0, 1)) for row in rows]
    requests = [
        Sample(
            video=row.video,
            prompt=template.render(question=row.prompt),
            seeds=row_seeds,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
        )
        for row, row_seeds in zip(rows, seeds, strict=True)
    ]
    return [
        Responses(
            id=row.id,
            video=row.video,
            prompt=row.prompt,
            responses=(first.text, second.text),
            finish=(first.finish, second.finish),
            seeds=(row_seeds[0], row_seeds[1]),
        )
        for row, row_seeds, (first, second) in zip(rows, seeds, engine.sample(requests, progress), strict=True)
    ]


def metrics(rows: Sequence[Responses]) -> dict[str, float]:
    """Words a response, share cut at the token limit, share of rows whose two responses are equal; and the rows that
    have an empty response, or none because the model could not be asked, by reason."""
    count = max(len(rows), 1)
    return {
        "rows": len(rows),
        "response_words": sum(len(text.split()) for row in rows for text in row.responses) / (2 * count),
        "truncated_fraction": sum(end == "length" for row in rows for end in row.finish) / (2 * count),
        "identical_fraction": sum(row.responses[0] == row.responses[1] for row in rows) / count,
        "empty": sum(not all(row.responses) and not NOT_ASKED.keys() & set(row.finish) for row in rows),
        **{reason: sum(reason in row.finish for row in rows) for reason in NOT_ASKED},
    }
