"""Preflight: what would make a run fail later is found now, all of it at once."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from isr_dpo import config, layout, manifest, prompts
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, RecipeError, StaleOutput
from isr_dpo.start import check_start
from isr_dpo.stores import Missing, join, open_store, read_bytes, write_bytes

log = logging.getLogger("isr_dpo")

PLACEMENT = "ISR_DPO_PLACEMENT"
"""Environment variable: the placement of the pod that this runs in."""


def check(recipe: Recipe, run_uri: str) -> None:
    """Tries what the run will need: prompts, starting model, data files, the run's store, the grader's key.

    Raises:
        RecipeError: every finding, a line each.
    """
    checks: tuple[Callable[[], object], ...] = (
        *outside(recipe, run_uri),
        lambda: _check_keys(recipe),
        lambda: _check_grader(recipe, run_uri),
        lambda: check_tracking(recipe, run_uri),
    )
    findings = []
    for probe in checks:
        try:
            probe()
        except IsrDpoError as error:
            findings.append(str(error))
    if findings:
        raise RecipeError("preflight:\n" + "\n".join(f"  - {finding}" for finding in findings))


def outside(recipe: Recipe, run_uri: str) -> tuple[Callable[[], object], ...]:
    """The probes that a submission makes too, before there is a pod: each raises an IsrDpoError, the finding."""
    return (
        lambda: prompts.load(recipe.prompts),
        lambda: check_start(recipe),
        lambda: _check_sources(recipe),
        lambda: _check_store(run_uri),
    )


def standing_recipe(run_uri: str) -> Mapping[str, Any] | None:
    """The recipe, as a tree, of the run that lies at `run_uri`; None where none does."""
    standing = _standing(run_uri)
    return None if standing is None else dict(standing["recipe"])


def claim(recipe: Recipe, run_uri: str) -> None:
    """Writes run.json. Raises StaleOutput as `check_changes` does."""
    check_changes(recipe, run_uri)
    tree = {"recipe": recipe.model_dump(mode="json"), "digest": recipe.digest()}
    if tree != _standing(run_uri):
        write_bytes(layout.run_file(run_uri), (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode())


def check_changes(recipe: Recipe, run_uri: str) -> None:
    """Compares with the recipe of the run that stands at `run_uri`: keys that finished work depends on may not have
    changed, others may (more iterations extend a run).

    Raises:
        StaleOutput: naming the changed keys, their values, and the steps that stand on them.
    """
    standing = _standing(run_uri)
    if standing is None or standing["digest"] == recipe.digest():
        return
    before = config.flatten(standing["recipe"])
    now = config.flatten(recipe.model_dump(mode="json"))
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    finished = _finished_steps(run_uri)
    bound = {key: [step for step in finished if _depends(step, key)] for key in changed}
    lines = [f"{k}: {before.get(k)!r} -> {now.get(k)!r} (finished: {', '.join(s)})" for k, s in bound.items() if s]
    if lines:
        raise StaleOutput(
            f"{run_uri} holds work of another recipe; finished work is never mixed. Changed:\n  "
            + "\n  ".join(lines)
            + "\nUse another --run-uri, or set these keys back"
        )


def _standing(run_uri: str) -> dict[str, Any] | None:
    try:
        tree: dict[str, Any] = json.loads(read_bytes(layout.run_file(run_uri)))
    except Missing:
        return None
    return tree


def _depends(step: str, key: str) -> bool:
    return any(key == k or key.startswith(k + ".") for k in config.SECTIONS.get(step, ()))


def _finished_steps(run_uri: str) -> list[str]:
    """Steps of which at least one output is complete."""
    names: Mapping[str, str] = {"policy": "train", "dataset": "prepare"}
    found = set()
    for name in open_store(run_uri).list(run_uri):
        if name.rpartition("/")[2] == manifest.MANIFEST and not name.startswith("policy-00/"):
            made = manifest.find(join(run_uri, name.rpartition("/")[0]))
            if made is not None:
                found.add(names.get(made.kind, made.step))
    return sorted(found)


def _check_sources(recipe: Recipe) -> None:
    missing = []
    data = recipe.data_read
    sources = {"data.train": data.train} if data.train is not None else {}
    sources |= {f"data.sets.{name}": uri for name, uri in data.sets.items()}
    sources |= {f"answer.predictions.{name}": uri for name, uri in recipe.answer.predictions.items()}
    for key, uri in sources.items():
        folder, _, name = uri.rpartition("/")
        is_output = key.startswith("answer.") and manifest.find(uri) is not None
        if not is_output and not open_store(uri).list(folder or ".").get(name):
            missing.append(f"{key}: {uri} is not there, or empty")
    if missing:
        hint = (
            "\n    (the demo world's files are drawn by: isr-dpo world draw runs/world)"
            if recipe.model.start == "builtin:world"
            else ""
        )
        raise RecipeError("\n  - ".join(missing) + hint)


def _check_store(run_uri: str) -> None:
    probe = join(run_uri, ".probe")
    write_bytes(probe, b"probe")
    open_store(probe).delete(probe)


def _check_keys(recipe: Recipe) -> None:
    if PLACEMENT in os.environ:  # a placement gives each step its own keys, and preflight none
        if recipe.evaluate.grader == "openai":
            log.info("preflight: the grader is not asked: its key, and the way to it, are evaluate's alone")
        return
    wanting = {"evaluate.grader": recipe.evaluate.grader, "engine.kind": recipe.engine.kind}
    for key, value in wanting.items():
        if value == "openai" and not os.environ.get("OPENAI_API_KEY"):
            packaged = "; or use the packaged grader: rules" if key == "evaluate.grader" else ""
            raise RecipeError(f"{key} is openai, but OPENAI_API_KEY is not set; set it{packaged}")


def _check_grader(recipe: Recipe, run_uri: str) -> None:
    """Does its endpoint take the key and have the model, and can bought grades be kept?"""
    if recipe.evaluate.grader != "openai":
        return
    _check_store(recipe.evaluate.ledger or layout.ledger(run_uri))
    if os.environ.get("OPENAI_API_KEY") and PLACEMENT not in os.environ:
        from isr_dpo.evaluate.reach import check_endpoint

        check_endpoint(recipe.evaluate)


def check_tracking(recipe: Recipe, run_uri: str) -> None:
    """Is MLflow there, and will it take the policies? What it no longer has of this run's steps is logged again."""
    from isr_dpo import registry, tracking

    known = tracking.finished_steps(recipe, run_uri=run_uri)
    if not recipe.is_benchmark:
        registry.check_source(recipe, run_uri)
    marks = open_store(run_uri).list(layout.tracked_marks(run_uri))
    for mark in marks:
        step, _, index = mark.rpartition("-")
        if (step, int(index)) not in known:
            uri = layout.tracked(run_uri, step, int(index))
            open_store(uri).delete(uri)
