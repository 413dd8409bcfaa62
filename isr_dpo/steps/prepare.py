"""The steps before the loop: preflight and prepare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isr_dpo import layout, manifest, outputs, preflight, start
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameStore
from isr_dpo.data.shrink import SHRUNK, shrink
from isr_dpo.digests import canonical_digest
from isr_dpo.errors import StaleOutput
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output
from isr_dpo.progress import Progress
from isr_dpo.steps.common import Inputs, StepResult, reused

if TYPE_CHECKING:
    from isr_dpo.data.dataset import Resize
    from isr_dpo.data.sources import Sources

PROCESSOR_FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")
"""What the resize depends on, of those that a policy has."""


def preflight_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Refuses a run that cannot work; writes run.json and makes policy-00 stand for the starting model."""
    preflight.check(recipe, run_uri)
    standing = manifest.find(layout.policy(run_uri, 0))
    policy = start.start_manifest(recipe, standing)
    renamed = not policy.files and standing is not None and standing.uri != policy.uri
    if standing is not None and (standing.digest != policy.digest or renamed):
        raise StaleOutput(
            f"{layout.policy(run_uri, 0)}: the run began from another model than {policy.uri} is now; "
            "use another --run-uri"
        )
    preflight.claim(recipe, run_uri)
    made = standing or outputs.alias(layout.policy(run_uri, 0), policy)
    return StepResult(made, {}, reused=standing is not None)


def prepare_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Reads rows and videos once: <run>/frames and <run>/dataset. Of prediction files the rows alone: nobody looks at
    the videos."""
    from isr_dpo.data import dataset
    from isr_dpo.data.sources import read_sources

    captioned = [name for name in recipe.data.sets if recipe.protocol(name) == "caption"]
    sources = read_sources(recipe.data_read, captioned=captioned)
    frames = None if recipe.answer.predictions else _frames(recipe, inputs["policy"], sources, run_uri)
    made_from = {} if frames is None else {"frames": frames.digest}
    section = dataset.dataset_section(sources)
    out = outputs.begin(layout.dataset(run_uri), Origin("dataset", "prepare", made_from, section, prompts_digest=""))
    if isinstance(out, Manifest):
        return reused(out)
    metrics = dataset.prepare_dataset(
        sources,
        out,
        store=None if frames is None else FrameStore(manifest.files(frames)),
        max_unreadable_fraction=recipe.data.max_unreadable_fraction,
    )
    rows = metrics["train_rows"] or sum(metrics[f"{name}_rows"] for name in sources.sets)
    return StepResult(out.seal(rows=int(rows), deterministic=True), metrics, reused=False)


def _frames(recipe: Recipe, policy: Manifest, sources: Sources, run_uri: str) -> Manifest:
    from isr_dpo.data import dataset

    names = [name for name in PROCESSOR_FILES if name in policy.files]
    processor = canonical_digest({name: policy.files[name].sha256 for name in names} if policy.files else SHRUNK)
    section = dataset.frames_section(sources, frames=recipe.data.frames, processor=processor)
    out = outputs.begin(layout.frames(run_uri), Origin("frames", "prepare", {}, section, prompts_digest=""))
    if isinstance(out, Output):
        progress = Progress("prepare", len(sources.videos), "videos")
        seen = 0

        def advance(done: int, _total: int) -> None:
            nonlocal seen
            progress(done - seen)
            seen = done

        dataset.prepare_frames(
            sources,
            out,
            frames=recipe.data.frames,
            resize=_resizer(policy),
            workers=recipe.data.workers,
            max_unreadable_fraction=recipe.data.max_unreadable_fraction,
            progress=advance,
        )
        return out.seal(rows=len(sources.videos), deterministic=True)
    manifest.verify(out)
    return out


def _resizer(policy: Manifest) -> Resize:
    """The policy's own; for a served model, whose files are not here, one that only makes frames smaller."""
    if not policy.files:
        return shrink
    from isr_dpo import models

    folder = manifest.files(policy, [name for name in policy.files if not name.endswith(".safetensors")])
    resize: Resize = models.family_of(folder).resizer(folder)
    return resize
