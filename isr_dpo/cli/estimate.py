"""`isr-dpo estimate`: what a recipe will cost, before it is submitted."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isr_dpo.cli.options import Commands, count

if TYPE_CHECKING:
    from isr_dpo.config import Recipe
    from isr_dpo.estimate import Estimate, StepCost

HEADER = ("step", "tasks", "GPUs", "GPU-h", "busy", "wall", "measured", "read", "written", "GPU memory")


def add(commands: Commands) -> None:
    estimate = commands.add_parser(
        "estimate",
        help="GPU-hours, time, bytes, memory and grader cost of a recipe",
        description="What a recipe will cost, by the formulas of the floor (60 % of the peak in prefill, 80 % of the "
        "bandwidth in decoding, 55 % of the peak in training) and, with --run, by what a finished run has taken. "
        "Exits with 2 above a limit of the recipe (max_gpu_hours, evaluate.max_cost_usd) or of a GPU's memory.",
    )
    estimate.add_argument("recipe", metavar="RECIPE", help="a recipe file, or in a checkout the name of one (smoke)")
    estimate.add_argument("--placement", metavar="FILE", help="or a name (gke): GPUs by step (default: 8 A100-80G)")
    estimate.add_argument("--run", dest="measured", metavar="RUN", help="a finished run: its measured times beside")
    estimate.add_argument("--rows", type=count, metavar="N", help="training rows, instead of reading data.train")
    estimate.add_argument("--videos", type=count, metavar="N", help="distinct videos of them (default: one a row)")
    estimate.add_argument("--set-rows", type=count, metavar="N", help="rows of each evaluation set, instead of reading")
    estimate.add_argument("--model-config", type=Path, metavar="FILE", help="a copy of model.start's config.json")
    estimate.add_argument("--video-tokens", type=count, metavar="N", help="tokens of a clip (default: the family's)")
    estimate.add_argument("--variant", metavar="NAME", help="of those in the recipe file")
    estimate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    estimate.add_argument("--json", action="store_true", help="print all of it as JSON")
    estimate.set_defaults(run=_estimate)


def _estimate(options: argparse.Namespace) -> None:
    from isr_dpo import config
    from isr_dpo.errors import RecipeError

    found = _made(options, config.load(_file(options.recipe, "recipes"), variant=options.variant, changes=options.set))
    print(json.dumps(_tree(found), indent=1) if options.json else text(found))
    if findings := found.findings():
        raise RecipeError(f"{options.recipe}:\n" + "\n".join(f"  - {finding}" for finding in findings))


def text(found: Estimate) -> str:
    """The estimate as a table and some lines."""
    rows = [HEADER, *(_row(step) for step in found.steps)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [_aligned(row, widths) for row in rows]
    grader = found.grader
    price = "no prices in the recipe" if grader.usd is None else f"{grader.usd:.2f} USD"
    counts = found.counts
    return "\n".join(
        [
            f"{found.recipe} on {found.placement}: {counts.rows} rows of {counts.videos} videos, "
            f"{sum(counts.sets.values())} questions in {len(counts.sets)} sets",
            "",
            *lines,
            "",
            f"GPU-hours  {found.gpu_hours:.1f} allocated, {found.busy_gpu_hours:.1f} busy",
            f"wall time  {_time(found.wall_hours)}, one task after another",
            f"store      {size(sum(step.read_bytes for step in found.steps))} read, "
            f"{size(sum(step.written_bytes for step in found.steps))} written, {size(found.stored_bytes)} at the end "
            "(isr-dpo gc makes it less)",
            f"grader     {grader.requests} grades, {price}",
            f"dominates  {found.dominant.step}; cheaper: {found.cheaper}",
        ]
    )


def _file(text: str, kind: str) -> Path:
    """The file of that path; where there is none, the checkout's `pipelines/<kind>/<text>.yaml`."""
    named = Path("pipelines", kind, f"{text}.yaml")
    return named if "/" not in text and not Path(text).is_file() and named.is_file() else Path(text)


def _made(options: argparse.Namespace, recipe: Recipe) -> Estimate:
    from isr_dpo.estimate import counts, estimate, read_placement, shapes
    from isr_dpo.estimate.measured import seconds_a_unit

    start = recipe.model.start
    model = None
    if options.model_config is not None:
        tree = shapes.read_config_file(options.model_config)
        model = shapes.shape_of(tree, frames=recipe.data.frames, video_tokens=options.video_tokens)
    elif start is not None:
        tree = shapes.read_config(start)
        model = shapes.shape_of(tree, frames=recipe.data.frames, video_tokens=options.video_tokens)
    return estimate(
        recipe,
        read_placement(_file(options.placement, "placements")) if options.placement else None,
        counts=counts.count(recipe, rows=options.rows, videos=options.videos, set_rows=options.set_rows),
        model=model,
        measured=seconds_a_unit(options.measured) if options.measured else None,
    )


def _tree(found: Estimate) -> dict[str, Any]:
    totals = {"gpu_hours": found.gpu_hours, "busy_gpu_hours": found.busy_gpu_hours, "dominant": found.dominant.step}
    return {**asdict(found), "grader": found.grader._asdict(), **totals, "findings": found.findings()}


def _row(step: StepCost) -> tuple[str, ...]:
    memory = "" if step.memory is None else f"{step.memory / 1e9:.0f} of {(step.memory_limit or 0) / 1e9:.0f} GB"
    return (
        step.step,
        str(step.tasks),
        str(step.gpus or ""),
        f"{step.gpu_hours:.1f}" if step.gpus else "",
        f"{step.busy_gpu_hours:.1f}" if step.gpus else "",
        _time(step.wall_hours),
        "" if step.measured_hours is None else _time(step.measured_hours),
        size(step.read_bytes) if step.read_bytes else "",
        size(step.written_bytes) if step.written_bytes else "",
        memory,
    )


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 2 else f"{hours * 3600:.0f} s"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def size(count: float) -> str:
    """Bytes in words: `14.7 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
