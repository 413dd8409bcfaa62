"""The same pairs judged again, with context and without: what Table 4 compares, on identical responses. A third time
with another video's description, which shows whether the judge reads its context at all [O].

No step of a run: what is made stands in <run>/round-tt/rejudged-<design>-<rows>, so that an interrupted one goes on and
a finished one is asked for once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo import judge, layout, manifest, outputs, prompts, retrospect
from isr_dpo.analyse.runs import Run
from isr_dpo.config import Recipe
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import DataError
from isr_dpo.manifest import Manifest
from isr_dpo.progress import Progress
from isr_dpo.records import Judged, Responses
from isr_dpo.steps.common import origin, rows_of
from isr_dpo.steps.engine import Engines, closed
from isr_dpo.steps.rounds import contexts_of


class Rejudged(NamedTuple):
    """The same rows by one policy."""

    without: list[Judged]
    with_context: list[Judged]
    shuffled: list[Judged]


def rejudge(run: Run, index: int, rows: Sequence[Judged], *, contexts_from: Run) -> Rejudged:
    """Asks policy `index` of `run` about `rows` of its round `index`: without context, with the descriptions of round
    `index` of the run `contexts_from`, and with these shuffled among the videos.

    Raises:
        DataError: that run has no descriptions, or the policy is not stored.
        ModelError: the policy cannot be run here.
    """
    contexts = _contexts(contexts_from, index)
    return Rejudged(
        without=_asked(run, index, rows, None, design="none"),
        with_context=_asked(run, index, rows, contexts, design="retrospective"),
        shuffled=_asked(run, index, rows, contexts, design="shuffled"),
    )


def _asked(run: Run, index: int, rows: Sequence[Judged], contexts: Manifest | None, *, design: str) -> list[Judged]:
    recipe = run.recipe.model_copy(
        update={
            "retrospect": run.recipe.retrospect.model_copy(update={"context": design}),
            "judge": run.recipe.judge.model_copy(update={"by": "self"}),
        }
    )
    inputs = {
        "policy": _stored(layout.policy(run.uri, index), f"policy {index}"),
        "dataset": _stored(layout.dataset(run.uri), "dataset"),
        **({} if contexts is None else {"contexts": contexts}),
    }
    items = [_responses(row) for row in sorted(rows, key=lambda row: row.id)]
    digest = canonical_digest([[row.id, row.prompt, *row.responses] for row in items])
    uri = layout.round_output(run.uri, index, f"rejudged-{design}-{digest[:8]}")
    digests = {name: made.digest for name, made in inputs.items()} | {"rows": digest}
    out = outputs.begin(uri, origin(recipe, "rejudged", "judge", digests))
    if isinstance(out, Manifest):
        return rows_of(out, Judged, "judged-")
    stage = functools.partial(
        judge.judge,
        contexts=_read(recipe, contexts, index),
        prompts=prompts.load(recipe.prompts),
        settings=recipe.judge,
        seed=recipe.seed,
        round_index=index,
    )
    progress = Progress(f"judge again, context {design}", len(items), "rows")
    with Engines(recipe, inputs, run.uri) as engines:
        judged = engines.work(items, out, row_type=Judged, stage=stage, progress=progress, prefix="judged")
    closed(out, {"rows": float(len(judged))}, rows=len(judged))
    return judged


def _read(recipe: Recipe, contexts: Manifest | None, index: int) -> dict[str, str] | None:
    if contexts is None:
        return None
    by_video = contexts_of(contexts)
    if recipe.retrospect.context != "shuffled":
        return by_video
    return retrospect.shuffled(by_video, seed=recipe.seed, round_index=index)


def _responses(row: Judged) -> Responses:
    return Responses(
        id=row.id,
        video=row.video,
        prompt=row.prompt,
        responses=row.responses,
        finish=("stop", "stop"),
        seeds=(0, 0),
    )


def _contexts(run: Run, index: int) -> Manifest:
    first = 1 if run.recipe.retrospect.context == "fixed" else index
    uri = layout.round_output(run.uri, first, "contexts")
    made = manifest.find(uri)
    if made is None:
        raise DataError(
            f"{uri}: no descriptions there to judge with; name a run that has them with --against (its context design "
            f"is {run.recipe.retrospect.context!r})"
        )
    return made


def _stored(uri: str, what: str) -> Manifest:
    made = manifest.find(uri)
    if made is None:
        raise DataError(f"{uri}: no finished {what} there; judging again needs it")
    return made
