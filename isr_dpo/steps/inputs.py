"""A step's inputs, found where the run's layout has them: for steps run by hand, one at a time."""

from __future__ import annotations

from collections.abc import Iterable

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError
from isr_dpo.manifest import Manifest
from isr_dpo.steps.common import bundle
from isr_dpo.stores import join


def inputs_of(name: str, recipe: Recipe, run_uri: str, index: int) -> dict[str, Manifest]:
    """The manifests that step `name` of round or policy `index` takes.

    Raises:
        DataError: one of them is not complete yet; says which step makes it.
    """
    if name == "preflight":
        return {}
    if name == "prepare":
        return {"policy": _complete(layout.policy(run_uri, 0), "preflight")}
    dataset = {"dataset": _complete(layout.dataset(run_uri), "prepare")}
    if name in ("evaluate", "register", "report"):
        return _assessed(name, recipe, run_uri, index, dataset)
    maker = "preflight" if index == 0 else f"train --index {index - 1}"
    held = {"policy": _complete(layout.policy(run_uri, index), maker), **dataset}
    if name == "retrospect":
        return held | _previous(recipe, run_uri, index)
    if name == "prefer":
        fixed = recipe.retrospect.context == "fixed" and index > 1
        return held | (_contexts(recipe, run_uri, index) if fixed else _previous(recipe, run_uri, index))
    if name == "judge":
        held["responses"] = _complete(layout.round_output(run_uri, index, "responses"), f"generate --index {index}")
        return held | _contexts(recipe, run_uri, index)
    if name == "train" and index > 0:
        held["preferences"] = _complete(layout.round_output(run_uri, index, "preferences"), f"judge --index {index}")
        if recipe.train.reference == "initial":
            held["initial"] = _complete(layout.policy(run_uri, 1), "train --index 0")
    return held


def _assessed(name: str, recipe: Recipe, run_uri: str, index: int, dataset: dict[str, Manifest]) -> dict[str, Manifest]:
    maker = "preflight" if index == 0 else f"train --index {index - 1}"
    policy = _complete(layout.policy(run_uri, index), maker)
    if name == "evaluate":
        answers = _members(layout.answers(run_uri, index), recipe.data.sets)
        if not answers:
            raise DataError(
                f"{layout.answers(run_uri, index)} is not complete; `isr-dpo answer --index {index}` makes it"
            )
        return {"answers": bundle("answers", "answer", layout.answers(run_uri, index), answers), **dataset}
    if name == "report":
        return {"assessed": policy}
    uri = layout.evaluation(run_uri, index)
    graded = _members(uri, [layout.graded_name(recipe.protocol(name), name) for name in recipe.data.sets])
    return {"policy": policy, "evaluation": bundle("evaluation", "evaluate", uri, graded)}


def _previous(recipe: Recipe, run_uri: str, index: int) -> dict[str, Manifest]:
    if index <= 1 or recipe.retrospect.context in ("renew", "none"):
        return {}
    before = layout.round_output(run_uri, index - 1, "contexts")
    return {"previous": _complete(before, f"retrospect --index {index - 1}")}


def _contexts(recipe: Recipe, run_uri: str, index: int) -> dict[str, Manifest]:
    if recipe.retrospect.context == "none":
        return {}
    made = 1 if recipe.retrospect.context == "fixed" else index
    return {"contexts": _complete(layout.round_output(run_uri, made, "contexts"), f"retrospect --index {made}")}


def _members(uri: str, names: Iterable[str]) -> dict[str, Manifest]:
    found = {name: manifest.find(join(uri, name)) for name in names}
    return {name: made for name, made in found.items() if made is not None}


def _complete(uri: str, maker: str) -> Manifest:
    made = manifest.find(uri)
    if made is None:
        raise DataError(f"{uri} is not complete; `isr-dpo {maker}` makes it")
    return made
