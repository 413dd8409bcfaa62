"""The loop, unrolled when it is compiled: a recipe in, a pipeline out.

    preflight -> prepare -> train 0 -> policy-01
    round t = 1, 2, ...:  generate | retrospect -> judge -> train t -> policy-(t+1)
    every policy from 01 on:  answer -> evaluate -> register -> report

generate and retrospect do not wait for each other, nor does a round for the evaluation of the policy it starts from.
With `engine.fused` the three steps of a round are one, which answers the dev set on the way:

    round t:  prefer -> train t          prefer -> answer -> evaluate -> register -> report

With `engine.pods` above 1 each of the policy's steps follows a loop over as many tasks of it, which do a share of its
parts each. No exit task anywhere: on a real backend one is silently skipped when it is needed most.

A recipe that trains nothing, `iterations: 0`, is the benchmark of evaluate.py instead.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl.pipeline_channel import PipelineChannel
from kfp.dsl.pipeline_task import PipelineTask

from components.generate import generate
from components.judge import judge
from components.prefer import prefer
from components.preflight import preflight
from components.prepare import prepare
from components.register import register
from components.report import report
from components.retrospect import retrospect
from isr_dpo.config import Recipe
from pipelines.evaluate import benchmark, graded
from pipelines.placed import Placed
from pipelines.placement import Placement
from pipelines.tasks import Tasks


def build(
    plan: Recipe,
    placement: Placement | None = None,
    *,
    run: str | None = None,
    run_id: str = dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    in_order: bool = False,
) -> Callable[..., None]:
    """The pipeline of recipe `plan`, whose one parameter without default is `run_uri`. `placement` says where its tasks
    run (none: here), `run` what their pods are labelled by (none: the recipe's name).

    `run_id` is who holds the run's lock. It is a constant of every task and no pipeline parameter, because a backend
    fills the job id in only there. The graph has as many rounds as `plan` says, so preflight refuses, by the digest, a
    run that is given another recipe than the compiled one. `in_order` lets a round wait for the report on the policy it
    starts from: where tasks run one at a time, and their order is otherwise left to chance.
    """
    loop = f"{plan.iterations} policies from {plan.model.start}, context {plan.retrospect.context}"
    placed = None if placement is None else Placed(placement, plan, run=run or plan.name)
    description = f"{plan.name} on {', '.join(plan.sets_at(0))}" if plan.is_benchmark else loop

    @dsl.pipeline(name=f"isr-dpo-{plan.name}", description=description)
    def isr_dpo(
        run_uri: str,
        recipe: str = plan.canonical(),
        recipe_digest: str = plan.digest(),
    ) -> None:
        tasks = Tasks(plan.engine.pods, placed=placed, recipe=recipe, run_uri=run_uri, run_id=run_id)
        if plan.is_benchmark:
            benchmark(plan, tasks, recipe_digest)
        else:
            unroll(plan, tasks, recipe_digest, in_order=in_order)

    return isr_dpo


class Round(NamedTuple):
    """What a round's training, and the next round, take from it."""

    preferences: PipelineChannel
    contexts: PipelineChannel | None
    answered: PipelineTask | None
    """The task that answers the policy's dev set too, where one does."""


def unroll(recipe: Recipe, tasks: Tasks, recipe_digest: str, *, in_order: bool) -> None:
    """All tasks of a run. Round t reads policy-t and writes policy-(t+1); round 0 is the seed DPO."""
    start = tasks.add(preflight, recipe_digest=recipe_digest).outputs["policy"]
    dataset = tasks.add(prepare, policy=start).outputs["dataset"]
    seed = tasks.train(index=0, policy=start, dataset=dataset).outputs["trained"]
    design = recipe.retrospect.context
    policy, contexts, page = seed, None, None
    for index in range(1, recipe.iterations):
        held = {"index": index, "policy": policy, "dataset": dataset}
        made = fused(tasks, design, contexts, **held) if recipe.engine.fused else None
        page = assess(tasks, index, policy, dataset, after=page, answered=made and made.answered)
        tasks.barrier = page if in_order else None
        made = made or by_stage(tasks, design, contexts, **held)
        anchor = {"initial": seed} if recipe.train.reference == "initial" else {}
        policy = tasks.train(preferences=made.preferences, **held, **anchor).outputs["trained"]
        contexts = made.contexts
    assess(tasks, recipe.iterations, policy, dataset, after=page)


_ROLE = {"fixed": "contexts", "retrospective": "previous", "shuffled": "previous"}
"""What a fused round takes an earlier round's contexts as, by the recipe's design."""


def fused(tasks: Tasks, design: str, contexts: PipelineChannel | None, **held: Any) -> Round:
    """A round whose three stages are one task. Its artifact stands for contexts and preferences alike."""
    seen = {} if contexts is None or design not in _ROLE else {_ROLE[design]: contexts}
    task = tasks.fan_out(prefer, **held, **seen)
    made = task.outputs["preferences"]
    return Round(made, contexts if design == "fixed" and contexts is not None else made, task)


def by_stage(tasks: Tasks, design: str, contexts: PipelineChannel | None, **held: Any) -> Round:
    """Two responses a row, contexts, and the policy's choice between the responses."""
    contexts = look_back(tasks, design, contexts, **held)
    responses = tasks.fan_out(generate, **held).outputs["responses"]
    seen = {} if contexts is None else {"contexts": contexts}
    return Round(tasks.fan_out(judge, responses=responses, **held, **seen).outputs["preferences"], contexts, None)


def look_back(tasks: Tasks, design: str, contexts: PipelineChannel | None, **held: Any) -> PipelineChannel | None:
    """The contexts of a round by the recipe's design (Table 5 [P]); `contexts` are the previous round's."""
    if design == "none" or (design == "fixed" and contexts is not None):
        return contexts
    previous = {} if contexts is None or design == "renew" else {"previous": contexts}
    return tasks.fan_out(retrospect, **held, **previous).outputs["contexts"]


def assess(
    tasks: Tasks,
    index: int,
    policy: PipelineChannel,
    dataset: PipelineChannel,
    *,
    after: PipelineTask | None,
    answered: PipelineTask | None = None,
) -> PipelineTask:
    """Evaluates and registers a policy. `after` is the previous policy's report: registry aliases and the page move in
    the policies' order. `answered` is the task that answers some of the policy's sets before."""
    evaluation = graded(tasks, index, policy, dataset, answered=answered)
    registered = tasks.add(register, index=index, policy=policy, evaluation=evaluation)
    if after is not None:
        registered.after(after)
    return tasks.add(report, index=index, assessed=registered.outputs["registered"])
