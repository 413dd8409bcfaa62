"""A whole loop in this process, without KFP: every step by `run_step`, on a tiny random policy and some drawn clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.manifest import Manifest
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of


def recipe_for(model: Path, world: Path, tracking: str, **changes: Any) -> Recipe:
    """A recipe of two rounds that takes seconds; `changes` are whole sections or top-level keys."""
    tree: dict[str, Any] = {
        "name": "small",
        "iterations": 3,
        "prompts": "world",
        "model": {"start": str(model), "registered_name": "small", "device": "cpu"},
        "data": {"train": str(world / "train.jsonl"), "sets": {"dev": str(world / "dev.qa.jsonl")}},
        "engine": {"batch_rows": 8, "rows_per_part": 5},
        "generate": {"max_new_tokens": 5},
        "retrospect": {"max_new_tokens": 6},
        "judge": {"min_label_mass": 0.0},
        "answer": {"max_new_tokens": 5},
        "train": {"learning_rate": 1e-3, "batch_pairs": 4, "micro_batch_tokens": 256, "seed_epochs": 1},
        "evaluate": {"full_at": [1]},
        "tracking": {"uri": tracking},
    }
    return Recipe.model_validate(tree | changes)


def step_names(recipe: Recipe) -> Iterator[tuple[str, int]]:
    """All steps of a run, in an order in which each finds its inputs."""
    yield from (("preflight", 0), ("prepare", 0))
    if recipe.is_benchmark:
        yield from (("answer", 0), ("evaluate", 0), ("report", 0))
        return
    yield "train", 0
    for policy in range(1, recipe.iterations + 1):
        yield from ((name, policy) for name in ("answer", "evaluate", "register", "report"))
        if policy == recipe.iterations:
            return
        yield "generate", policy
        design = recipe.retrospect.context
        if design != "none" and (design != "fixed" or policy == 1):
            yield "retrospect", policy
        yield from (("judge", policy), ("train", policy))


def run_loop(recipe: Recipe, run_uri: str, *, until: tuple[str, int] | None = None) -> None:
    """Runs all steps, up to and with `until`."""
    for name, index in step_names(recipe):
        run_step(name, recipe, inputs_of(name, recipe, run_uri, index), run_uri, index)
        if (name, index) == until:
            return


def standing(recipe: Recipe, run_uri: str) -> dict[str, Manifest]:
    """The manifests of the loop's outputs by their place, those of evaluation and report left out."""
    places = {"dataset": layout.dataset(run_uri), "frames": layout.frames(run_uri)}
    for index in range(1, recipe.iterations + 1):
        places[layout.policy_name(index)] = layout.policy(run_uri, index)
    for index in range(1, recipe.iterations):
        for name in ("responses", "contexts", "preferences", "training"):
            places[f"{index}/{name}"] = layout.round_output(run_uri, index, name)
    found = {place: manifest.find(uri) for place, uri in places.items()}
    return {place: made for place, made in found.items() if made is not None}


def read(uri: str) -> bytes:
    """All parts of an output, joined."""
    made = manifest.find(uri)
    assert made is not None
    folder = manifest.files(made)
    return b"".join((folder / name).read_bytes() for name in sorted(made.files) if name.endswith(".jsonl"))


if __name__ == "__main__":  # python -m tests.loop MODEL WORLD TRACKING RUN_URI: what the fault tests kill
    import os
    import sys

    from isr_dpo.stores.lock import owner

    model_folder, world_folder, tracking_uri, run = sys.argv[1:]
    with owner(run, f"pid-{os.getpid()}"):
        run_loop(recipe_for(Path(model_folder), Path(world_folder), tracking_uri), run)
