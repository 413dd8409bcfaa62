"""A round's preference stages in one process, without KFP and MLflow: what the fault tests kill.

python -m tests.faults.stages MODEL WORLD RUN_URI WORKERS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from isr_dpo import layout, manifest, outputs, start
from isr_dpo.errors import IsrDpoError
from isr_dpo.steps import STEPS
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.stores.lock import owner
from tests.loop import recipe_for

ROUND = 1


def main(model: Path, world: Path, run_uri: str, workers: int) -> None:
    """generate, retrospect, judge of round 1, the policy being the model itself."""
    engine = {"batch_rows": 4, "rows_per_part": 2, "workers": workers}
    recipe = recipe_for(model, world, "unused", engine=engine)
    with owner(run_uri, f"pid-{os.getpid()}", patience_seconds=30):
        for index in (0, ROUND):
            if manifest.find(layout.policy(run_uri, index)) is None:
                outputs.alias(layout.policy(run_uri, index), start.start_manifest(recipe))
        for name, index in (("prepare", 0), ("generate", ROUND), ("retrospect", ROUND), ("judge", ROUND)):
            STEPS[name](recipe, inputs_of(name, recipe, run_uri, index), run_uri, index)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    except IsrDpoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
