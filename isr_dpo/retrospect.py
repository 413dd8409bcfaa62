"""Retrospect: c_t ~ pi_t(V, c_(t-1)), a description of each video refined from the previous round's (section 3.2).

Round 1 has no predecessor and describes afresh. Table 5's designs: `fixed` keeps round 1's contexts, `renew` describes
afresh every round, `none` has no context. `shuffled`, a control of ours [O], gives the judge another video's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from isr_dpo.config import Retrospect
from isr_dpo.engines import Engine, Progress, Sample
from isr_dpo.prompts import Prompts
from isr_dpo.records import Context, seed_for


def retrospect(
    videos: Sequence[str],
    previous: Mapping[str, str],
    engine: Engine,
    *,
    prompts: Prompts,
    settings: Retrospect,
    seed: int,
    round_index: int,
    progress: Progress = lambda _: None,
) -> list[Context]:
    """c_t of each distinct video; `previous` holds c_(t-1) by video and is empty for a fresh description."""
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
    return [
        Context(video=video, context=text.text, previous=previous.get(video))
        for video, (text,) in zip(videos, drawn, strict=True)
    ]


def shuffled(contexts: Mapping[str, str], *, seed: int, round_index: int) -> dict[str, str]:
    """Every video gets another video's context: a seeded cycle through all of them, so none keeps its own."""
    videos = sorted(contexts)
    random.Random(seed_for(seed, "shuffle", round_index)).shuffle(videos)
    return {video: contexts[other] for video, other in zip(videos, videos[1:] + videos[:1], strict=True)}


def metrics(rows: Sequence[Context]) -> dict[str, float]:
    """Words a context, and the share that changed against the previous round."""
    count = max(len(rows), 1)
    refined = [row for row in rows if row.previous is not None]
    return {
        "rows": len(rows),
        "context_words": sum(len(row.context.split()) for row in rows) / count,
        "changed_fraction": sum(row.context != row.previous for row in refined) / max(len(refined), 1),
    }
