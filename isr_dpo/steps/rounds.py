"""The steps of a round: generate, retrospect, judge, train."""

from __future__ import annotations

import functools
import logging

from isr_dpo import generate, judge, layout, manifest, preferences, prompts, retrospect
from isr_dpo.config import Recipe
from isr_dpo.manifest import Manifest
from isr_dpo.parts import WHOLE, Share
from isr_dpo.progress import Progress
from isr_dpo.records import Context, Judged, Responses, to_jsonl
from isr_dpo.steps.common import Inputs, StepResult, begin, metrics_of, questions, reused, rows_of
from isr_dpo.steps.engine import Engines, closed

log = logging.getLogger("isr_dpo")


def generate_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share = WHOLE) -> StepResult:
    """Two draws a training row: round-tt/responses."""
    out = begin(recipe, "responses", "generate", inputs, layout.round_output(run_uri, index, "responses"))
    if isinstance(out, Manifest):
        return reused(out)
    rows = questions(inputs["dataset"])
    stage = functools.partial(
        generate.generate,
        template=prompts.load(recipe.prompts).answer,
        settings=recipe.generate,
        seed=recipe.seed,
        round_index=index,
    )
    progress = Progress(f"generate, round {index}", len(rows), "rows")
    with Engines(recipe, inputs, run_uri) as engines:
        made = engines.work(rows, out, row_type=Responses, stage=stage, progress=progress, share=share)
    return closed(out, generate.metrics(made), rows=len(made), share=share)


def retrospect_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share = WHOLE) -> StepResult:
    """A context a distinct video: round-tt/contexts."""
    out = begin(recipe, "contexts", "retrospect", inputs, layout.round_output(run_uri, index, "contexts"))
    if isinstance(out, Manifest):
        return reused(out)
    videos = list(dict.fromkeys(row.video for row in questions(inputs["dataset"])))
    stage = functools.partial(
        retrospect.retrospect,
        previous=contexts_of(inputs["previous"]) if "previous" in inputs else {},
        prompts=prompts.load(recipe.prompts),
        settings=recipe.retrospect,
        seed=recipe.seed,
        round_index=index,
    )
    progress = Progress(f"retrospect, round {index}", len(videos), "videos")
    with Engines(recipe, inputs, run_uri) as engines:
        made = engines.work(videos, out, row_type=Context, stage=stage, progress=progress, share=share)
    return closed(out, retrospect.metrics(made), rows=len(made), share=share)


def judge_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share = WHOLE) -> StepResult:
    """The policy's choice between its responses: round-tt/preferences."""
    out = begin(recipe, "preferences", "judge", inputs, layout.round_output(run_uri, index, "preferences"))
    if isinstance(out, Manifest):
        return _guarded(recipe, reused(out), run_uri, index)
    rows = rows_of(inputs["responses"], Responses)
    contexts = contexts_of(inputs["contexts"]) if "contexts" in inputs else None
    if contexts is not None and recipe.retrospect.context == "shuffled":
        contexts = retrospect.shuffled(contexts, seed=recipe.seed, round_index=index)
    stage = functools.partial(
        judge.judge,
        contexts=contexts,
        prompts=prompts.load(recipe.prompts),
        settings=recipe.judge,
        seed=recipe.seed,
        round_index=index,
    )
    progress = Progress(f"judge, round {index}", len(rows), "rows")
    with Engines(recipe, inputs, run_uri) as engines:
        judged = engines.work(rows, out, row_type=Judged, stage=stage, progress=progress, prefix="judged", share=share)
    pairs = preferences.preferences(judged)
    if share != WHOLE:
        return closed(out, {}, rows=len(pairs), share=share)
    out.write("part-00000.jsonl", to_jsonl(pairs))
    result = closed(out, preferences.metrics(judged), rows=len(pairs))
    return _guarded(recipe, result, run_uri, index)


def contexts_of(made: Manifest) -> dict[str, str]:
    """The contexts of an output by video."""
    return {row.video: row.context for row in rows_of(made, Context)}


def _guarded(recipe: Recipe, result: StepResult, run_uri: str, index: int) -> StepResult:
    """Stops the run where the guards of the recipe say that the loop is dying."""
    first = _standing_metrics(layout.round_output(run_uri, 1, "preferences")) if index > 1 else None
    preferences.guard(dict(result.metrics), first, recipe.guards, where=f"round {index}")
    return result


def _standing_metrics(uri: str) -> dict[str, float]:
    made = manifest.find(uri)
    return metrics_of(made) if made is not None else {}
