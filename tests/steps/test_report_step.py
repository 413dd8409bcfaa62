"""The step report: written, logged to MLflow, and left alone where it would say the same."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isr_dpo import layout, mlflow_client, tracking
from isr_dpo.config import Recipe
from isr_dpo.errors import OutsideError
from isr_dpo.manifest import Manifest, Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.steps import execute, run_step
from isr_dpo.stores import join
from tests.loop import recipe_for


@pytest.fixture
def recipe(model: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return recipe_for(model, world, f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def run_uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def output(uri: str, files: dict[str, bytes]) -> Manifest:
    out = begin(uri, Origin("test", "test", {}, "", ""))
    assert isinstance(out, Output)
    for name, content in files.items():
        out.write(name, content)
    return out.seal(rows=1, deterministic=True)


def report(recipe: Recipe, run_uri: str, assessed: Manifest, index: int) -> Any:
    return run_step("report", recipe, {"assessed": assessed}, run_uri, index)


def logged(recipe: Recipe) -> str:
    client = mlflow_client.open_client(recipe.tracking.uri)
    experiment = client.get_experiment_by_name(recipe.tracking.experiment)
    (parent,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == recipe.name]
    return Path(client.download_artifacts(parent.info.run_id, tracking.PAGE)).read_text()


def test_each_round_s_page_takes_the_place_of_the_one_before(recipe: Recipe, run_uri: str) -> None:
    assessed = output(join(run_uri, "assessed"), {})
    page = report(recipe, run_uri, assessed, 1).page
    assert page == Path(layout.report(run_uri)).read_text() == logged(recipe)
    assert "policy-02" in page
    output(layout.round_output(run_uri, 0, "training"), {"metrics.json": b'{"pairs": 7}'})
    newer = report(recipe, run_uri, assessed, 2).page
    assert newer == logged(recipe) != page


def test_kfp_is_given_the_page_itself(recipe: Recipe, run_uri: str, tmp_path: Path) -> None:
    given = SimpleNamespace(path=str(tmp_path / "assessed.json"))
    Path(given.path).write_text(output(join(run_uri, "assessed"), {}).to_json())
    page, metrics = SimpleNamespace(path=str(tmp_path / "kfp" / "page"), metadata={}), SimpleNamespace()
    for _ in ("made", "standing"):
        execute("report", recipe.canonical(), run_uri, "run-1", 1, {"assessed": given}, page, metrics)
        assert Path(page.path).read_text() == Path(layout.report(run_uri)).read_text()
        Path(page.path).unlink()


def test_a_page_that_says_the_same_is_not_logged_again(
    recipe: Recipe, run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assessed = output(join(run_uri, "assessed"), {})
    assert not report(recipe, run_uri, assessed, 1).reused
    monkeypatch.setattr(tracking, "step_run", lambda *_, **__: pytest.fail("MLflow is asked again"))
    assert report(recipe, run_uri, assessed, 1).reused


def test_an_artifact_store_that_is_away_costs_a_warning(
    recipe: Recipe, run_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(self: tracking.StepRun, content: str) -> None:
        raise OutsideError("no bucket there")

    monkeypatch.setattr(tracking.StepRun, "page", away)
    monkeypatch.setattr(logging.getLogger("isr_dpo"), "propagate", True)
    assert report(recipe, run_uri, output(join(run_uri, "assessed"), {}), 1).page
    assert "could not be logged to MLflow: no bucket there" in caplog.text
