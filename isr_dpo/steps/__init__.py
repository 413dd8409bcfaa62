"""The composition root: one plain function a step, and `execute`, which every caller runs them through.

A step takes the recipe, the manifests of its inputs, the run's URI and an index (the round; for answer, evaluate,
register and report the policy), and returns the manifest of its output with its metrics. It returns at once when its
output stands complete; heavy imports happen after that check.
"""

from isr_dpo.steps.common import StepResult
from isr_dpo.steps.execute import STEPS, execute, new_run_id, rebuild_report, run_step

__all__ = ["STEPS", "StepResult", "execute", "new_run_id", "rebuild_report", "run_step"]
