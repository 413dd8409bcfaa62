"""A run's record, run.json: the recipe that stands there."""

from __future__ import annotations

import json

from isr_dpo import config, layout
from isr_dpo.config import Recipe
from isr_dpo.errors import CorruptOutput, DataError
from isr_dpo.stores import Missing, read_bytes


def recipe_of(run_uri: str) -> Recipe:
    """The recipe of the run at `run_uri`.

    Raises:
        DataError: no run lies there.
        CorruptOutput: its record cannot be read.
    """
    where = layout.run_file(run_uri)
    try:
        tree = json.loads(read_bytes(where))["recipe"]
    except Missing:
        raise DataError(f"{run_uri}: no run.json there, so no run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptOutput(f"{where}: not a run's record ({error}); mend it, or begin the run again") from error
    return config.parse(json.dumps(tree), where=where)
