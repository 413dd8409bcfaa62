"""How much data a recipe has: rows of its files where they can be read, else what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isr_dpo.config import Recipe
from isr_dpo.data.rows import Named, TrainRow, read
from isr_dpo.errors import DataError, OutsideError, StoreError


@dataclass(frozen=True)
class Counts:
    """Rows and distinct videos. `seed` rows are those with a preference; `clips` are all videos, of the sets too."""

    rows: int
    seed: int
    videos: int
    sets: Mapping[str, int]
    clips: int


def count(recipe: Recipe, *, rows: int | None = None, videos: int | None = None, set_rows: int | None = None) -> Counts:
    """Counts of the recipe's data. A given number stands for a file and saves it from being read: `rows` (all of them
    seed preferences too, `videos` or as many videos) for data.train, `set_rows` for each evaluation set.

    Raises:
        DataError: a file cannot be read, and no number stands for it.
    """
    data = recipe.data_read
    seen: set[str] = set()
    train = seed = distinct = 0
    if data.train is not None and rows is not None:
        train, seed, distinct = rows, rows, videos or rows
    elif data.train is not None:
        found = [located.row for located in _rows(data.train, "data.train", TrainRow, "--rows")]
        train, seed = len(found), sum(row.chosen is not None and row.rejected is not None for row in found)
        seen = {row.video for row in found}
        distinct = videos or len(seen)
    beside = 0
    sets = {}
    for name, uri in data.sets.items():
        if set_rows is not None:
            sets[name], beside = set_rows, beside + set_rows
            continue
        named = [located.row.video for located in _rows(uri, f"data.sets.{name}", Named, "--set-rows")]
        sets[name] = len(named)
        seen |= set(named)
    clips = beside + (len(seen) if rows is None else len(seen) + distinct)
    return Counts(train, seed, distinct, sets, clips)


def _rows(uri: str, key: str, row_type: type, option: str) -> list:  # type: ignore[type-arg]
    try:
        return list(read(uri, row_type, key=key))
    except (OutsideError, StoreError, DataError) as error:
        raise DataError(f"{error}; {option} N stands for what is not at hand") from error
