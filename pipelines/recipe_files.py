"""Recipes by path, by the name of one that lies in `pipelines/recipes`, or by the URI of a run that was made by one."""

import json
from collections.abc import Sequence
from pathlib import Path

from isr_dpo import config
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.layout import run_file
from isr_dpo.stores import Missing, read_bytes

FOLDER = Path(__file__).parent / "recipes"


def load(name_or_path: str, *, variant: str | None = None, changes: Sequence[str] = ()) -> Recipe:
    """The recipe, or its `variant`, with `changes` (`key=value`) made to it, validated.

    Raises:
        RecipeError: neither a file, a packaged name nor a run, no such variant, or the recipe says something
            impossible.
        OutsideError: the run's store is away.
    """
    packaged = FOLDER / f"{name_or_path}.yaml"
    if "/" not in name_or_path and packaged.is_file():
        return config.load(packaged, variant=variant, changes=changes)
    if Path(name_or_path).is_file():
        return config.load(name_or_path, variant=variant, changes=changes)
    try:
        of_run = json.loads(read_bytes(run_file(name_or_path)))["recipe"]
    except Missing:
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise RecipeError(
            f"recipe {name_or_path!r}: no such file, nor a packaged recipe ({names}), nor a run's URI"
        ) from None
    return config.parse(json.dumps(of_run), where=run_file(name_or_path), variant=variant, changes=changes)
