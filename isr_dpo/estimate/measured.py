"""What a finished run has taken, in seconds a row of each step, to be set beside the formulas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from isr_dpo import times
from isr_dpo.config import Recipe
from isr_dpo.errors import DataError
from isr_dpo.record import recipe_of


def seconds_a_unit(run_uri: str) -> Mapping[str, float]:
    """By step: seconds of all the run's attempts at it, over all that they did (rows, videos, pairs times epochs,
    answers). A fanned-out step's shares count together, as if one pod had done them.

    Raises:
        DataError: there is no run, or it has recorded no step's time.
        CorruptOutput: a record cannot be read.
        OutsideError: the store stays away.
    """
    recipe = recipe_of(run_uri)
    spent: dict[str, float] = defaultdict(float)
    done: dict[str, int] = defaultdict(int)
    records = times.read(run_uri)
    counted = {(each.step, each.index) for each in records if each.done and each.share == 0 and each.rows}
    for each in records:
        if (each.step, each.index) in counted:
            spent[each.step] += each.seconds
            done[each.step] += (each.rows or 0) * _epochs(recipe, each)
    if not counted:
        raise DataError(f"{run_uri}: no step of it has recorded its time, so nothing is measured")
    return {step: spent[step] / done[step] for step in sorted(done)}


def _epochs(recipe: Recipe, record: times.StepTime) -> int:
    if record.step != "train":
        return 1
    return recipe.train.seed_epochs if record.index == 0 else recipe.train.epochs
