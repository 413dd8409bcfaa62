"""A run that starts from another run's policy, and reads what that run has prepared."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from isr_dpo import layout, manifest, outputs, removed
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.manifest import MANIFEST
from pipelines import recipe_files


class Fork(NamedTuple):
    """The new run's recipe, and the run whose dataset and frames serve it too (None: other data, prepared anew)."""

    recipe: Recipe
    reuses: str | None


def fork(policy_uri: str, *, recipe: str | None, variant: str | None = None, changes: Sequence[str]) -> Fork:
    """Starts from the policy at `policy_uri` (its directory, or its manifest.json) with its run's recipe, or `recipe`,
    its `variant` and `changes`. The policy has had its seed DPO: policy-01 is the start itself, unless `changes` say
    otherwise.

    Raises:
        RecipeError: no finished policy of a run there.
        DataError: its weights were removed.
    """
    uri = policy_uri.removesuffix("/").removesuffix("/" + MANIFEST)
    made, run_uri = manifest.find(uri), uri.rpartition("/")[0]
    if made is None or made.kind != "policy":
        what = "is no finished output" if made is None else f"holds {made.kind} of a run"
        raise RecipeError(f"--fork {policy_uri}: {what}; named is a policy of a run, s3://bucket/run/policy-03")
    removed.refuse(made.uri)
    parent = recipe_files.load(run_uri)
    start = [f"model.start={json.dumps(uri)}", "train.seed_epochs=0"]
    forked = recipe_files.load(recipe or run_uri, variant=variant, changes=[*start, *changes])
    same = _read(forked) == _read(parent)
    return Fork(forked, run_uri if same and manifest.find(layout.dataset(run_uri)) is not None else None)


def reuse(run_uri: str, new_run_uri: str) -> None:
    """Lets the dataset and frames of `run_uri` stand in the new run too: they are read where they lie."""
    for place in (layout.frames, layout.dataset):
        made = manifest.find(place(run_uri))
        if made is not None and manifest.find(place(new_run_uri)) is None:
            outputs.alias(place(new_run_uri), made)


def _read(recipe: Recipe) -> dict[str, object]:
    """What frames and dataset depend on, of the recipe."""
    return recipe.data_read.model_dump(exclude={"workers", "max_unreadable_fraction"})
