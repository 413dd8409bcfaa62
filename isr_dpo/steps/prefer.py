"""The step prefer: a round's generate, retrospect and judge in one engine session, which answers the dev set too.

What the fused stage makes of each video is kept below <run>/round-tt/prefer while it works. When all videos are done,
each of the three steps is handed its rows as finished parts and completes its directory as it does on its own: same
files, same manifest. Then the kept rows are removed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from isr_dpo import layout, manifest, prompts
from isr_dpo.config import Recipe
from isr_dpo.errors import StaleOutput
from isr_dpo.manifest import Manifest
from isr_dpo.outputs import Output
from isr_dpo.parts import WHOLE, Share, work_in_parts
from isr_dpo.prefer import Earlier, Preferred, Stages, by_stage, by_video, prefer
from isr_dpo.progress import Progress
from isr_dpo.records import Context, Judged, Responses, Row
from isr_dpo.steps.assess import answer_sets
from isr_dpo.steps.common import Inputs, StepResult, begin, bundle, members, questions, rows_of
from isr_dpo.steps.engine import ENGINE, Engines, closed
from isr_dpo.steps.rounds import contexts_of, generate_step, judge_step, retrospect_step
from isr_dpo.stores import open_store

KIND = "preferred"


class _Stage(NamedTuple):
    """One of the three steps, by the directory that it completes."""

    step: str
    run: Callable[[Recipe, Inputs, str, int], StepResult]
    row_type: type[Row]
    prefix: str = "part"


_STAGES: Mapping[str, _Stage] = {
    "responses": _Stage("generate", generate_step, Responses),
    "contexts": _Stage("retrospect", retrospect_step, Context),
    "preferences": _Stage("judge", judge_step, Judged, "judged"),
}


def prefer_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int, *, share: Share = WHOLE) -> StepResult:
    """A round's responses, contexts and preferences, and its policy's answers to the dev set. The manifest is a bundle
    of those of the round's directories.

    A round that the three steps have begun is finished by them, and so is one with `shuffled` contexts, whose judge
    needs those of all videos first.
    """
    return _Round(recipe, inputs, run_uri, index).prefer(share)


def taken(made: Manifest, name: str) -> Manifest:
    """What the input `name` of a step takes of a fused round's artifact; any other manifest as it is."""
    if made.kind != KIND:
        return made
    return members(made)["preferences" if name == "preferences" else "contexts"]


class _Kept(NamedTuple):
    """What the fused stage has made, and where it is kept."""

    out: Output
    rows: Stages


class _Round:
    """One fused round."""

    def __init__(self, recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> None:
        self._recipe, self._inputs, self._run_uri, self._index = recipe, inputs, run_uri, index
        self._held = {name: inputs[name] for name in ("policy", "dataset")}

    def prefer(self, share: Share) -> StepResult:
        uri, kept = self._uri("prefer"), None
        if self._left_to_the_stages():
            if share != WHOLE:
                return StepResult(self._bundled({}), {}, reused=False)
        else:
            out = begin(self._recipe, KIND, "prefer", self._inputs, uri)
            assert isinstance(out, Output)  # it is never sealed
            made = self._ask(out, share)
            if share != WHOLE:
                return closed(out, {}, rows=len(made), share=share)
            kept = _Kept(out, by_stage(questions(self._inputs["dataset"]), made))
        results = self._complete(kept)
        open_store(uri).delete(uri)
        metrics = {f"{name}/{key}": value for name, result in results.items() for key, value in result.metrics.items()}
        reused = all(result.reused for result in results.values())
        return StepResult(self._bundled(results), metrics, reused=reused)

    def _bundled(self, results: Mapping[str, StepResult]) -> Manifest:
        uri = self._uri("").rstrip("/")
        return bundle(KIND, "prefer", uri, {name: result.manifest for name, result in results.items()})

    def _uri(self, name: str) -> str:
        return layout.round_output(self._run_uri, self._index, name)

    def _left_to_the_stages(self) -> bool:
        if self._recipe.retrospect.context == "shuffled" or manifest.find(self._uri("preferences")) is not None:
            return True
        return any(self._begun(name) for name in _STAGES) and not self._begun("prefer")

    def _begun(self, name: str) -> bool:
        return bool(open_store(self._run_uri).list(self._uri(name)))

    def _ask(self, out: Output, share: Share) -> list[Preferred]:
        """All that is asked of the policy, the dev set first: a guard may stop the round afterwards."""
        recipe, index = self._recipe, self._index
        videos = by_video(questions(self._inputs["dataset"]))
        stage = functools.partial(
            prefer, earlier=self._earlier(), recipe=recipe, prompts=prompts.load(recipe.prompts), round_index=index
        )
        progress = Progress(f"prefer, round {index}", len(videos), "videos")
        with Engines(recipe, self._held, self._run_uri) as engines:
            answer_sets(recipe, self._held, engines, self._run_uri, index, [recipe.evaluate.dev], share=share)
            return engines.work(videos, out, row_type=Preferred, stage=stage, progress=progress, share=share)

    def _earlier(self) -> Earlier:
        given = {name: contexts_of(self._inputs[name]) for name in ("previous", "contexts") if name in self._inputs}
        return Earlier(given.get("previous", {}), given.get("contexts"))

    def _complete(self, kept: _Kept | None) -> dict[str, StepResult]:
        """The three steps; with nothing kept they ask the policy themselves."""
        results = {"responses": self._stage("responses", self._held, kept)}
        judged_from = {**self._held, "responses": results["responses"].manifest}
        if "contexts" in self._inputs:
            judged_from["contexts"] = self._inputs["contexts"]
        elif self._recipe.retrospect.context != "none":
            results["contexts"] = self._stage("contexts", self._inputs, kept)
            judged_from["contexts"] = results["contexts"].manifest
        results["preferences"] = self._stage("preferences", judged_from, kept)
        return results

    def _stage(self, name: str, inputs: Inputs, kept: _Kept | None) -> StepResult:
        if kept is not None:
            self._hand_over(name, inputs, kept)
        return _STAGES[name].run(self._recipe, inputs, self._run_uri, self._index)

    def _hand_over(self, name: str, inputs: Inputs, kept: _Kept) -> None:
        """Writes the parts of one directory.

        Raises:
            StaleOutput: the directory is complete with other rows.
        """
        stage, rows = _STAGES[name], getattr(kept.rows, "judged" if name == "preferences" else name)
        out = begin(self._recipe, name, stage.step, inputs, self._uri(name))
        if isinstance(out, Manifest):
            if rows_of(out, stage.row_type) != rows:
                raise StaleOutput(
                    f"{out.uri} was finished with other rows than {kept.out.uri} holds; delete the latter, and the "
                    "steps of the round finish it one by one"
                )
            return
        out.keep(())  # an attempt of the step alone may have left parts
        if ENGINE in kept.out.done:
            out.write(ENGINE, kept.out.read(ENGINE))
        work_in_parts(
            rows,
            out,
            rows_per_part=self._recipe.engine.rows_per_part,
            row_type=stage.row_type,
            workers=lambda: (None,),
            work=lambda chunk, _, __: chunk,
            prefix=stage.prefix,
        )
