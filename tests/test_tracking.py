from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isr_dpo import config, mlflow_client, tracking
from isr_dpo.config import Recipe
from isr_dpo.errors import OutsideError
from tests.servers.mlflow_server import fresh_database, shared_server


def recipe_at(uri: str, **changes: object) -> Recipe:
    tree = {
        "name": "small",
        "model": {"start": "builtin:world", "registered_name": "m"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
        "tracking": {"uri": uri, "experiment": "tests"},
    }
    return Recipe.model_validate({**tree, **changes})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_AUTH"):
        monkeypatch.delenv(name, raising=False)
    return recipe_at(fresh_database(tmp_path))


def runs_of(recipe: Recipe) -> dict[str, object]:
    client = mlflow_client.open_client(recipe.tracking.uri)
    experiment = client.get_experiment_by_name("tests")
    runs = client.search_runs([experiment.experiment_id])
    assert len({r.info.run_name for r in runs}) == len(runs), "a run was duplicated"
    return {r.info.run_name: r for r in runs}


def test_a_step_is_a_nested_run_and_its_metrics_make_curves_in_the_parent(recipe: Recipe) -> None:
    for index, loss in ((1, 0.7), (2, 0.5)):
        with tracking.step_run(recipe, run_uri="runs/a", run_id="r1", step="train", index=index) as run:
            run.log({"loss_last": loss})
            run.tag({"digest": f"d{index}"})

    runs = runs_of(recipe)
    assert set(runs) == {"small", "train round-01", "train round-02"}
    parent, first = runs["small"], runs["train round-01"]
    assert first.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert first.info.status == "FINISHED"
    assert first.data.tags["isr_dpo.digest"] == "d1"
    history = mlflow_client.open_client(recipe.tracking.uri).get_metric_history(parent.info.run_id, "train/loss_last")
    assert [(m.step, m.value) for m in history] == [(1, 0.7), (2, 0.5)]
    assert tracking.finished_steps(recipe, run_uri="runs/a") == {("train", 1), ("train", 2)}


def test_the_parent_holds_the_recipe_as_params_and_as_a_whole(recipe: Recipe) -> None:
    with tracking.step_run(recipe, run_uri="runs/a", run_id="r1", step="prepare", index=0):
        pass
    data = runs_of(recipe)["small"].data
    assert data.params["generate.temperature"] == "0.7"
    assert data.params["train.max_grad_norm"] == "null"
    assert set(data.params) == set(config.flatten(recipe.model_dump(mode="json")))
    assert config.parse(data.tags["isr_dpo.recipe"]) == recipe
    assert data.tags["isr_dpo.recipe_digest"] == recipe.digest()


def test_a_repeated_step_goes_on_in_its_own_run_and_another_recipe_gets_another_parent(recipe: Recipe) -> None:
    for run_id in ("first", "again"):
        with tracking.step_run(recipe, run_uri="runs/a", run_id=run_id, step="prepare", index=0) as run:
            run.log({"rows": 3.0})
    assert set(runs_of(recipe)) == {"small", "prepare"}

    other = recipe.model_copy(update={"name": "other"})
    with tracking.step_run(other, run_uri="runs/a", run_id="r", step="generate", index=1):
        pass
    assert set(runs_of(recipe)) == {"small", "prepare", "other", "generate round-01"}
    assert tracking.finished_steps(recipe, run_uri="runs/a") == {("prepare", 0)}


def test_a_run_begins_when_the_work_began(recipe: Recipe) -> None:
    with tracking.step_run(recipe, run_uri="u", run_id="r", step="judge", index=1, started=1_700_000_000.5):
        pass
    assert runs_of(recipe)["judge round-01"].info.start_time == 1_700_000_000_500


def test_a_failed_step_says_why_and_a_retry_clears_it(recipe: Recipe) -> None:
    with (
        pytest.raises(ValueError, match="too hot"),
        tracking.step_run(recipe, run_uri="u", run_id="r", step="judge", index=1),
    ):
        raise ValueError("too hot")
    runs = runs_of(recipe)
    assert (runs["judge round-01"].info.status, runs["small"].info.status) == ("FAILED", "FAILED")
    assert runs["judge round-01"].data.tags["isr_dpo.error"] == "ValueError: too hot"
    assert tracking.finished_steps(recipe, run_uri="u") == set()

    with tracking.step_run(recipe, run_uri="u", run_id="r", step="judge", index=1):
        assert runs_of(recipe)["small"].info.status == "RUNNING"
    tracking.finish(recipe, run_uri="u")
    runs = runs_of(recipe)
    assert (runs["judge round-01"].info.status, runs["small"].info.status) == ("FINISHED", "FINISHED")
    assert "isr_dpo.error" not in runs["judge round-01"].data.tags


def test_an_injected_run_is_the_parent_and_its_address_wins(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = recipe.tracking.uri
    client = mlflow_client.open_client(uri)
    injected = client.create_run(client.create_experiment("tests"), run_name="from outside").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", injected)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    elsewhere = recipe_at(f"sqlite:///{tmp_path}/never.db")
    for step in ("prepare", "preflight"):
        with tracking.step_run(elsewhere, run_uri="u", run_id="r", step=step, index=0):
            pass
    tracking.finish(elsewhere, run_uri="u")
    runs = runs_of(recipe)
    assert set(runs) == {"from outside", "prepare", "preflight"}
    assert runs["prepare"].data.tags["mlflow.parentRunId"] == injected
    assert runs["from outside"].data.params["name"] == "small"
    assert runs["from outside"].info.status == "RUNNING", "it is not ours to finish"
    assert not (tmp_path / "never.db").exists()


def test_the_pods_token_never_goes_to_an_address_from_a_recipe(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_AUTH", "kubernetes")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://cluster-mlflow")
    mlflow_client.open_client(recipe.tracking.uri)
    assert "MLFLOW_TRACKING_AUTH" not in os.environ


def test_a_new_database_appears_whole(tmp_path: Path) -> None:
    recipe = recipe_at(f"sqlite:///{tmp_path}/deep/mlflow.db")
    with tracking.step_run(recipe, run_uri="u", run_id="r", step="prepare", index=0):
        pass
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["mlflow.db"]
    client = mlflow_client.open_client(recipe.tracking.uri)
    assert client.get_experiment_by_name("tests").artifact_location.endswith("deep/mlartifacts")


def test_a_server_that_is_away_is_named_soon(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as deaf:  # accepts a connection and says nothing
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://user:hunter2@127.0.0.1:{deaf.getsockname()[1]}"
        began = time.monotonic()
        with (
            pytest.raises(OutsideError, match=r"MLflow at http://127\.0\.0\.1:\d+") as caught,
            tracking.step_run(recipe_at(url), run_uri="u", run_id="r", step="prepare", index=0),
        ):
            pytest.fail("the step must not begin")
        assert time.monotonic() - began < 60
    assert caught.value.retry
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("content", [b"this is no database" * 100, None], ids=["garbage", "unwritable"])
def test_a_database_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "mlflow.db"
    if content is None:
        (tmp_path / "blocked").write_bytes(b"a file where a folder should be")
        file = tmp_path / "blocked" / "mlflow.db"
    else:
        file.write_bytes(content)
    with pytest.raises(OutsideError, match=f"MLflow at sqlite:///{file}"):
        mlflow_client.open_client(f"sqlite:///{file}")


def test_a_real_server_holds_the_same_runs() -> None:
    recipe = recipe_at(shared_server())
    for _ in range(2):
        with tracking.step_run(recipe, run_uri="s3://b/run", run_id="r", step="answer", index=2) as run:
            run.log({"dev/rows": 5.0})
    runs = runs_of(recipe)
    assert set(runs) == {"small", "answer policy-02"}
    assert runs["small"].data.metrics["answer/dev/rows"] == 5.0


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, isr_dpo.tracking, isr_dpo.registry, isr_dpo.pyfunc; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_is_an_artifact_of_the_parent_in_place_of_the_one_before(recipe: Recipe) -> None:
    for index in (1, 2):
        with tracking.step_run(recipe, run_uri="runs/a", run_id="r", step="report", index=index) as run:
            run.page(f"<!DOCTYPE html><title>{index}</title>")
    client = mlflow_client.open_client(recipe.tracking.uri)
    parent = runs_of(recipe)["small"].info.run_id
    assert [found.path for found in client.list_artifacts(parent, "report")] == [tracking.PAGE]
    assert Path(client.download_artifacts(parent, tracking.PAGE)).read_text() == "<!DOCTYPE html><title>2</title>"
