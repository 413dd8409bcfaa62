"""The steps before the loop: preflight and prepare."""

from __future__ import annotations

from isr_dpo import layout, manifest, preflight
from isr_dpo.config import Recipe
from isr_dpo.errors import StaleOutput
from isr_dpo.manifest import Manifest, Output
from isr_dpo.progress import Progress
from isr_dpo.steps.common import Inputs, StepResult, origin, reused, sealed


def preflight_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Refuses a run that cannot work; writes run.json and makes policy-00 stand for the starting model."""
    preflight.check(recipe, run_uri)
    start = preflight.start_manifest(recipe)
    standing = manifest.find(layout.policy(run_uri, 0))
    if standing is not None and standing.digest != start.digest:
        raise StaleOutput(
            f"{layout.policy(run_uri, 0)}: the run began from another model than {recipe.model.start} is now; "
            "use another --run-uri"
        )
    preflight.claim(recipe, run_uri)
    made = standing or manifest.alias(layout.policy(run_uri, 0), start)
    return StepResult(made, {}, reused=standing is not None)


def prepare_step(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """Reads rows and videos once: <run>/frames and <run>/dataset."""
    from isr_dpo.data import dataset

    sources = dataset.read_sources(recipe.data)
    digests = {name: source.digest for name, source in sources.items()}
    frames = _frames(recipe, inputs["policy"], sources, digests, run_uri)
    out = manifest.begin(
        layout.dataset(run_uri), origin(recipe, "dataset", "prepare", {**digests, "frames": frames.digest})
    )
    if isinstance(out, Manifest):
        return reused(out)
    metrics = dataset.prepare_dataset(sources, frames, out)
    return sealed(out, metrics, rows=int(metrics["train_rows"]), deterministic=True)
