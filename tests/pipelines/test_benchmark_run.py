"""A benchmark of the demo world's own model, by the real steps under kfp.local, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isr_dpo import layout
from isr_dpo.analyse.compared import System, compared
from isr_dpo.analyse.runs import open_runs
from isr_dpo.data.world import draw
from isr_dpo.errors import RecipeError
from pipelines import recipe_files
from tests.loop import run_loop

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    draw(folder / "world", seed=0, train=2, dev=8, test=8, seed_preferences=0)
    recipe = {
        "name": "world",
        "iterations": 0,
        "prompts": "world",
        "model": {"device": "cpu", "cpu_threads": 1},
        "data": {"sets": {name: f"world/{name}.qa.jsonl" for name in ("dev", "test")}},
        "answer": {"max_new_tokens": 12},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def pipelines(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [sys.executable, "-m", "pipelines", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> "subprocess.CompletedProcess[str]":
    return pipelines(folder, "evaluate", "recipe.yaml", "--model", "builtin:world", "--run-uri", "runs/start")


def test_a_model_is_evaluated_on_all_sets_and_the_terminal_says_how_it_did(
    evaluated: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    for name in ("dev", "test"):
        (line,) = [line for line in evaluated.stdout.splitlines() if line.startswith(f"{name} ")]
        metrics = json.loads((folder / layout.graded("runs/start", 0, "caption", name) / "metrics.json").read_text())
        assert f"{100 * metrics['accuracy']:.1f} [" in line
        assert line.split()[:3] == [name, "caption", "8"]
    assert "rule-based grader (no model)" in evaluated.stdout
    assert (folder / layout.report("runs/start")).is_file()
    assert not list((folder / "runs/start").glob("round-*"))
    again = pipelines(folder, "evaluate", "recipe.yaml", "--model", "builtin:world", "--run-uri", "runs/start")
    assert "complete, every output verified" in again.stdout


def test_its_figures_are_in_mlflow_and_no_model_is(evaluated: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    from isr_dpo.mlflow_client import open_client

    client = open_client(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("isr-dpo")
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`mlflow.runName` = 'world'")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["evaluate/test/rows"] == 8
    assert "evaluate/dev/accuracy" in parent.data.metrics
    assert client.search_registered_models() == []


def test_its_own_answers_as_prediction_files_score_the_same_and_compare_as_equal(
    evaluated: "subprocess.CompletedProcess[str]", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    files = {name: f"runs/start/answers/policy-00/{name}/part-00000.jsonl" for name in ("dev", "test")}
    change = f"answer.predictions={json.dumps(files)}"
    run_loop(recipe_files.load("./recipe.yaml", changes=[change]), "runs/imported")
    a, b = open_runs(["runs/start", "runs/imported"])
    for name in ("dev", "test"):
        found = compared(System(a, 0), System(b, 0), name).comparison
        assert found.rows == 8
        assert found.accuracies[0] == found.accuracies[1]
        assert (found.accuracy.mean, found.accuracy.p_value) == (0, 1)
        assert found.flips.to_right == found.flips.to_wrong == ()


def test_a_benchmark_of_nobody_is_refused_before_anything_starts(folder: Path) -> None:
    made = pipelines(folder, "run", "recipe.yaml", "--run-uri", "runs/none")
    assert made.returncode == RecipeError.exit_code
    assert "recipe.yaml: nobody answers: a benchmark (iterations: 0) needs model.start" in made.stderr
    assert not (folder / "runs/none").exists()
