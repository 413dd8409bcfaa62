"""The step evaluate in one process, without KFP and MLflow: what the fault tests kill.

python -m tests.faults.grading RECIPE RUN_URI
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError
from isr_dpo.evaluate import batch, batch_api
from isr_dpo.steps import STEPS
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.stores.lock import owner


def main(recipe: Recipe, run_uri: str) -> None:
    """evaluate of policy-00; all short waits of it shortened."""
    batch.FIRST_POLL_SECONDS = 0.05
    batch_api.FIRST_LOOK_SECONDS = 0.05
    with owner(run_uri, "the-run", patience_seconds=30):
        result = STEPS["evaluate"](recipe, inputs_of("evaluate", recipe, run_uri, 0), run_uri, 0)
    assert result.metrics["pending_sets"] == 0, result.metrics


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    try:
        main(Recipe.model_validate_json(Path(sys.argv[1]).read_text()), sys.argv[2])
    except IsrDpoError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
