"""What MLflow has of a train step that ran through `run_step`, its model left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, live, mlflow_client, tracking
from isr_dpo.config import Recipe
from isr_dpo.errors import OutsideError
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.steps import STEPS, run_step
from isr_dpo.steps.common import Inputs, StepResult
from tests.servers.mlflow_server import fresh_database

LOG = [{"step": step, "loss": 0.7 - step / 100, "margin": step / 10} for step in range(1, 6)]


def output(uri: str, files: dict[str, bytes]) -> Manifest:
    """Stands, or is made."""
    made = begin(uri, Origin("test", "train", {}, "", ""))
    if isinstance(made, Output):
        for name, content in files.items():
            made.write(name, content)
        return made.seal(rows=0, deterministic=True)
    return made


def train(recipe: Recipe, inputs: Inputs, run_uri: str, index: int) -> StepResult:
    """A train step that shows the first three of its five steps."""
    with live.show(recipe, run_uri=run_uri, step="train", index=index) as shown:
        for line in LOG[:3]:
            shown.log(line)
    text = "".join(json.dumps(line) + "\n" for line in LOG)
    output(layout.round_output(run_uri, index, "training"), {"log.jsonl": text.encode()})
    return StepResult(output(layout.policy(run_uri, index + 1), {}), {"margin": 0.5}, reused=False)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setitem(STEPS, "train", train)
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"start": "builtin:world", "registered_name": "m"},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
            "tracking": {"uri": fresh_database(tmp_path), "experiment": "tests"},
        }
    )


def points(recipe: Recipe, key: str) -> list[tuple[int, float]]:
    client = mlflow_client.open_client(recipe.tracking.uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == "train round-01"]
    assert run.info.status == "FINISHED"
    history: list[Any] = client.get_metric_history(run.info.run_id, key)
    return [(point.step, point.value) for point in history]


def test_every_optimiser_step_is_there_once_beside_the_round_s_figures(recipe: Recipe, tmp_path: Path) -> None:
    run_step("train", recipe, {}, str(tmp_path / "run"), 1)
    assert points(recipe, "train/step/loss") == [(line["step"], line["loss"]) for line in LOG]
    assert points(recipe, "train/step/margin") == [(line["step"], line["margin"]) for line in LOG]
    assert points(recipe, "train/margin") == [(1, 0.5)], "the round's mean is a curve of its own"


def test_a_policy_that_is_trained_again_finishes_its_run_again(recipe: Recipe, tmp_path: Path) -> None:
    """It was deleted, say, and has come out the same."""
    for _ in range(2):
        run_step("train", recipe, {}, str(tmp_path / "run"), 1)
    assert len(points(recipe, "train/step/loss")) == len(LOG)


def test_mlflow_away_at_the_end_costs_another_call_and_no_point(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise OutsideError("MLflow at http://x: away")

    with monkeypatch.context() as patch:
        patch.setattr(live, "open_step", away)
        patch.setattr(tracking, "open_step", away)
        with pytest.raises(OutsideError):
            run_step("train", recipe, {}, str(tmp_path / "run"), 1)
    run_step("train", recipe, {}, str(tmp_path / "run"), 1)
    assert points(recipe, "train/step/loss") == [(line["step"], line["loss"]) for line in LOG]


def test_a_policy_that_was_not_trained_has_no_curve(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alias(_: Recipe, __: Inputs, run_uri: str, index: int) -> StepResult:
        return StepResult(output(layout.policy(run_uri, index + 1), {}), {}, reused=False)

    monkeypatch.setitem(STEPS, "train", alias)
    run_step("train", recipe, {}, str(tmp_path / "run"), 1)
    assert points(recipe, "train/step/loss") == []
