"""What a recipe will cost on a placement, before anything is bought: by the formulas of the floor, and beside them by
what a finished run has taken.

    machines   GPUs a step, and what they can do           shapes    a model's sizes from its config.json
    counts     rows and videos                             work      FLOPs and bytes of the steps (the formulas)
    tasks      the run's tasks, one by one                 memory    of a GPU      money   of the grader
    measured   seconds a row of a run that is done
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isr_dpo import config
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError
from isr_dpo.estimate.counts import Counts, count
from isr_dpo.estimate.machines import Place, Placement, read_placement
from isr_dpo.estimate.money import Bill, bill
from isr_dpo.estimate.shapes import ModelShape, read_config, shape_of
from isr_dpo.estimate.tasks import Planner, Task

__all__ = ["Counts", "Estimate", "Place", "Placement", "StepCost", "estimate", "read_placement"]

_HOUR = 3600.0
_WORTH_SAYING = 0.02
_CHEAPER = (
    ("engine.kind=vllm", "engine.fused=true"),
    ("engine.fused=true",),
    ("train.gradient_checkpointing=false",),
    ("engine.pods=1",),
)
"""Changes of a recipe that leave what it computes as it is."""


@dataclass(frozen=True)
class StepCost:
    """All tasks of one step. GPU-hours are allocated; `busy` ones do work. `memory` bytes of the `memory_limit` of a
    GPU; `measured_hours` of wall clock, from a finished run's rows a second."""

    step: str
    tasks: int
    gpus: int
    gpu_hours: float
    busy_gpu_hours: float
    wall_hours: float
    read_bytes: float
    written_bytes: float
    memory: float | None
    memory_limit: float | None
    measured_hours: float | None = None

    @property
    def fits(self) -> bool:
        """Into a GPU's memory."""
        return self.memory is None or self.memory_limit is None or self.memory <= self.memory_limit


@dataclass(frozen=True)
class Estimate:
    """Of a whole run. `wall_hours` has its tasks one after another, as on one node; evaluations but the last run beside
    them. `stored_bytes` lie in the store when it ends."""

    recipe: str
    placement: str
    counts: Counts
    steps: tuple[StepCost, ...]
    wall_hours: float
    stored_bytes: float
    grader: Bill
    cheaper: str
    max_gpu_hours: float | None
    max_cost_usd: float | None

    @property
    def gpu_hours(self) -> float:
        """Allocated."""
        return sum(step.gpu_hours for step in self.steps)

    @property
    def busy_gpu_hours(self) -> float:
        return sum(step.busy_gpu_hours for step in self.steps)

    @property
    def dominant(self) -> StepCost:
        """The step that costs most: by GPU-hours, without a GPU by time, measured where it is."""
        return max(
            self.steps,
            key=lambda s: (s.gpu_hours, s.wall_hours if s.measured_hours is None else s.measured_hours),
        )

    def findings(self) -> list[str]:
        """What speaks against submitting it, each with the way out; none: within all limits that the recipe states."""
        found = []
        if self.max_gpu_hours is not None and self.gpu_hours > self.max_gpu_hours:
            found.append(
                f"the estimate is {self.gpu_hours:.0f} GPU-hours, max_gpu_hours is {self.max_gpu_hours:g}: raise it, "
                f"or make it cheaper ({self.cheaper})"
            )
        usd = self.grader.usd
        if self.max_cost_usd is not None and usd is not None and usd > self.max_cost_usd:
            found.append(
                f"{self.grader.requests} grades are estimated at {usd:.2f} USD, evaluate.max_cost_usd is "
                f"{self.max_cost_usd:g}: raise it, shorten evaluate.full_at, or set evaluate.batch"
            )
        return found + [_too_large(step) for step in self.steps if not step.fits]


def estimate(
    recipe: Recipe,
    placement: Placement | None = None,
    *,
    counts: Counts | None = None,
    model: ModelShape | None = None,
    measured: Mapping[str, float] | None = None,
) -> Estimate:
    """What `recipe` costs on `placement` (none: one node of 8 x A100-80G).

    Args:
        counts: of its data; none: the rows of its files are counted.
        model: sizes of model.start; none: read from its config.json.
        measured: seconds a row by step (`measured.seconds_a_unit`).

    Raises:
        ModelError: model.start has no config.json of a supported family.
        DataError: a data file cannot be read.
        OutsideError, StoreError: a store is away.
    """
    placement = placement or Placement()
    counts = counts or count(recipe)
    start = recipe.model.start
    if model is None and start is not None:
        model = shape_of(read_config(start), frames=recipe.data.frames)
    planner = Planner(recipe, placement, counts, model or _nobody(recipe))
    tasks = list(planner.tasks())
    steps = _steps(planner, tasks, measured or {})
    masters = 4.0 * planner.model.trained if recipe.model.dtype != "float32" and recipe.iterations > 1 else 0.0
    made = recipe.iterations - (0 if planner.seeded else 1)
    return Estimate(
        recipe=recipe.name,
        placement="no GPU" if recipe.model.device == "cpu" else placement.name,
        counts=counts,
        steps=steps,
        wall_hours=_wall_hours(tasks),
        stored_bytes=planner.frame_bytes + max(made, 0) * planner.policy_bytes + masters,
        grader=bill(recipe, counts.sets, answer_tokens=planner.texts.answer),
        cheaper=_cheaper(recipe, placement, counts, planner.model, steps),
        max_gpu_hours=recipe.max_gpu_hours,
        max_cost_usd=recipe.evaluate.max_cost_usd,
    )


def _steps(planner: Planner, tasks: list[Task], measured: Mapping[str, float]) -> tuple[StepCost, ...]:
    return tuple(
        _step(planner, [task for task in tasks if task.step == name], measured.get(name))
        for name in dict.fromkeys(task.step for task in tasks)
    )


def _step(planner: Planner, tasks: list[Task], seconds_a_unit: float | None) -> StepCost:
    first = tasks[0]
    units = sum(task.units for task in tasks)
    return StepCost(
        step=first.step,
        tasks=len(tasks),
        gpus=first.gpus,
        gpu_hours=sum(task.gpus * task.seconds for task in tasks) / _HOUR,
        busy_gpu_hours=sum(task.busy for task in tasks) / _HOUR,
        wall_hours=sum(task.seconds for task in tasks) / _HOUR,
        read_bytes=sum(task.read for task in tasks),
        written_bytes=sum(task.written for task in tasks),
        memory=planner.memory(first.step) if first.gpus else None,
        memory_limit=first.device.memory if first.gpus else None,
        measured_hours=None if seconds_a_unit is None else units * seconds_a_unit / _HOUR,
    )


def _wall_hours(tasks: list[Task]) -> float:
    last = max(task.index for task in tasks)
    return sum(task.seconds for task in tasks if task.step != "evaluate" or task.index == last) / _HOUR


def _cheaper(recipe: Recipe, placement: Placement, counts: Counts, model: ModelShape, now: tuple[StepCost, ...]) -> str:
    """The change of the recipe that saves most GPU-hours, each tried on the same formulas."""
    gpu_hours, too_large = sum(step.gpu_hours for step in now), sum(not step.fits for step in now)
    best, saved = "", _WORTH_SAYING * gpu_hours
    for changes in _CHEAPER:
        try:
            other = config.parse(recipe.canonical(), changes=changes)
            planner = Planner(other, placement, counts, model)
            steps = _steps(planner, list(planner.tasks()), {})
        except IsrDpoError:  # the recipe has other settings that forbid it
            continue
        gain = gpu_hours - sum(step.gpu_hours for step in steps)
        if gain > saved and sum(not step.fits for step in steps) <= too_large:
            best, saved = " ".join(change for change in changes if _changes(recipe, change)), gain
    if best:
        return f"{best} saves {saved:.0f} GPU-hours of {gpu_hours:.0f}"
    if not gpu_hours:
        return "no GPU is used; iterations and rows rule the time"
    return "no setting that keeps the result; spot nodes, or GPUs with more FLOP/s and bandwidth a dollar"


def _changes(recipe: Recipe, change: str) -> bool:
    return config.parse(recipe.canonical(), changes=[change]) != recipe


def _too_large(step: StepCost) -> str:
    ways = {
        "train": "more GPUs, train.zero_stage=3, train.gradient_checkpointing=true or fewer train.micro_batch_tokens",
    }
    way = ways.get(step.step, "a GPU with more memory, engine.kind=vllm, or fewer engine.batch_rows")
    return (
        f"{step.step} needs about {(step.memory or 0) / 1e9:.0f} GB of a GPU that has "
        f"{(step.memory_limit or 0) / 1e9:.0f}: {way}"
    )


def _nobody(recipe: Recipe) -> ModelShape:
    """Sizes where no model of ours runs: the system is served elsewhere, or has answered already."""
    config_tree = {"architectures": ["VideoLlavaForConditionalGeneration"]}
    return shape_of(config_tree, frames=recipe.data.frames)
