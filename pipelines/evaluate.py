"""A benchmark of any system without training, the counterpart of the public outdomain_test_pipeline.sh.

    preflight -> prepare (sets alone) -> answer -> evaluate -> report

The system is policy-00: a model folder, a policy of another run, a served model, or the author of prediction files.
Nothing is registered: it is no policy of ours.
"""

from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.answer import answer
from components.evaluate import evaluate
from components.preflight import preflight
from components.prepare import prepare
from components.report import report
from isr_dpo.config import Recipe
from pipelines.tasks import Tasks


def benchmark(recipe: Recipe, tasks: Tasks, recipe_digest: str) -> None:
    """All tasks of a recipe with `iterations: 0`."""
    system = tasks.add(preflight, recipe_digest=recipe_digest).outputs["policy"]
    dataset = tasks.add(prepare, policy=system).outputs["dataset"]
    evaluation = graded(tasks, 0, system, dataset, fan_out=not recipe.answer.predictions)
    tasks.add(report, index=0, assessed=evaluation)


def graded(
    tasks: Tasks,
    index: int,
    policy: PipelineChannel,
    dataset: PipelineChannel,
    *,
    answered: PipelineTask | None = None,
    fan_out: bool = True,
) -> PipelineChannel:
    """A policy's answers, graded. `answered` is the task that answers some of the sets before; without `fan_out` the
    answers are one pod's work, since they stand in files."""
    asked = {"index": index, "policy": policy, "dataset": dataset}
    task = tasks.fan_out(answer, after=answered, **asked) if fan_out else tasks.add(answer, **asked)
    graded_from = {"answers": task.outputs["answers"], "dataset": dataset}
    return tasks.add(evaluate, index=index, **graded_from).outputs["evaluation"]
