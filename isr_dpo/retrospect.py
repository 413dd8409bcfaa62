"""Retrospect: c_t ~ pi_t(V, c_(t-1)), a description of each video refined from the previous round's (section 3.2).

Round 1 has no predecessor and describes afresh. Table 5's designs: `fixed` keeps round 1's contexts, `renew` describes
afresh every round, `none` has no context. `shuffled`, a control of ours [O], gives the judge another video's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from isr_dpo.config import Retrospect
from isr_dpo.engines import Engine, Progress, Sample, Text
from isr_dpo.prompts import Prompts
from isr_dpo.records import NOT_ASKED, Context, seed_for


def retrospect(
    videos: Sequence[str],
    engine: Engine,
    *,
    previous: Mapping[str, str],
    prompts: Prompts,
    settings: Retrospect,
    seed: int,
    round_index: int,
    progress: Progress = lambda _: None,
) -> list[Context]:
    """c_t of each distinct video; `previous` holds c_(t-1) by video and is empty for a fresh description. Where the
    model cannot be asked for c_t, c_(t-1) stands [O]."""
    requests = [
        Sample(
            video=video,
            prompt=prompts.refine.render(context=previous[video]) if video in previous else prompts.describe.render(),
            seeds=(seed_for(seed, "retrospect", round_index, video),),
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.max_new_tokens,
        )
        for video in videos
    ]
    drawn = engine.sample(requests, progress)
    return [_context(video, text, previous.get(video)) for video, (text,) in zip(videos, drawn, strict=True)]


def _context(video: str, text: Text, previous: str | None) -> Context:
    if text.finish in NOT_ASKED:
        return Context(video=video, context=previous or "", previous=previous, reason=text.finish)
    return Context(video=video, context=text.text, previous=previous)


def shuffled(contexts: Mapping[str, str], *, seed: int, round_index: int) -> dict[str, str]:
    """Every video gets another video's context: a seeded cycle through all of them, so none keeps its own."""
    videos = sorted(contexts)
    random.Random(seed_for(seed, "shuffle", round_index)).shuffle(videos)
    return {video: contexts[other] for video, other in zip(videos, videos[1:] + videos[:1], strict=True)}


def metrics(rows: Sequence[Context]) -> dict[str, float]:
    """Words a context, the share that changed against the previous round, and the videos that have an empty context,
    or none of this round because the model could not be asked, by reason."""
    count = max(len(rows), 1)
    refined = [row for row in rows if row.previous is not None]
    return {
        "rows": len(rows),
        "context_words": sum(len(row.context.split()) for row in rows) / count,
        "changed_fraction": sum(row.context != row.previous for row in refined) / max(len(refined), 1),
        "empty": sum(not row.context and row.reason is None for row in rows),
        **{reason: sum(row.reason == reason for row in rows) for reason in NOT_ASKED},
    }
