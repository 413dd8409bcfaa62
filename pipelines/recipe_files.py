"""Recipes by path, or by the name of one that lies in `pipelines/recipes`."""

from collections.abc import Sequence
from pathlib import Path

from isr_dpo import config
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError

FOLDER = Path(__file__).parent / "recipes"


def load(name_or_path: str, *, changes: Sequence[str] = ()) -> Recipe:
    """The recipe with `changes` (`key=value`) made to it, validated.

    Raises:
        RecipeError: neither a file nor a packaged name, or the recipe says something impossible.
    """
    packaged = FOLDER / f"{name_or_path}.yaml"
    if "/" not in name_or_path and packaged.is_file():
        return config.load(packaged, changes=changes)
    if not Path(name_or_path).is_file():
        names = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise RecipeError(f"recipe {name_or_path!r}: no such file, nor a packaged recipe ({names})")
    return config.load(name_or_path, changes=changes)
