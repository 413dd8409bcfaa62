"""Policies become versions, with tags and a card; the best of a run is its challenger; what is registered loads."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isr_dpo import mlflow_client, pyfunc, registry, tracking
from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.registry import Candidate
from tests.servers.mlflow_server import fresh_database


def recipe_at(uri: str, name: str = "m") -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"start": "builtin:world", "registered_name": name},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
            "tracking": {"uri": uri},
        }
    )


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh_database(tmp_path)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """mlflow with its addresses restored afterwards, and a policy that repeats what it is asked."""
    import mlflow

    class Answerer:
        def __init__(self, folder: Path) -> None:
            self.weights = (folder / "weights").read_text()

        def ask(self, video: Path, question: str) -> str:
            return f"{self.weights} {video} {question}"

    ask = types.ModuleType("isr_dpo.ask")
    ask.Answerer = Answerer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "isr_dpo.ask", ask)
    tracking, registered = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield mlflow
    mlflow.set_tracking_uri(tracking)
    mlflow.set_registry_uri(registered)


def candidate(index: int, accuracy: float | None, **changes: object) -> Candidate:
    made = Candidate(
        run_uri="runs/a",
        index=index,
        uri=f"runs/a/policy-{index:02d}",
        digest=f"digest-{index}",
        dataset_digest="data",
        dev_digest="dev",
        grader="rule-based",
        dev_accuracy=accuracy,
        metrics={} if accuracy is None else {"accuracy": accuracy},
        code_version="0.1.0+c0ffee",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def alias(uri: str, name: str = "m", model: str = "m") -> str | None:
    versions = mlflow_client.open_client(uri).get_registered_model(model).aliases
    return None if name not in versions else str(versions[name])


def best_versions(uri: str) -> list[str]:
    found = mlflow_client.open_client(uri).search_model_versions("name = 'm'")
    return [str(v.version) for v in found if v.tags.get("best-of-run") == "true"]


def test_the_best_of_a_run_is_its_challenger_and_the_tag_moves_with_it(uri: str) -> None:
    recipe = recipe_at(uri)
    seen = []
    for index, accuracy in ((1, 0.5), (2, 0.7), (3, 0.6), (4, 0.7)):
        registered = registry.register(recipe, candidate(index, accuracy))
        seen.append((registered.version, registered.best, alias(uri, "challenger"), best_versions(uri)))
    assert seen == [
        ("1", True, "1", ["1"]),
        ("2", True, "2", ["2"]),
        ("3", False, "2", ["2"]),
        ("4", False, "2", ["2"]),  # the earlier of equals
    ]
    assert alias(uri, "champion") is None


def test_registering_again_adds_no_version_and_takes_in_a_late_evaluation(uri: str) -> None:
    recipe = recipe_at(uri)
    assert not registry.register(recipe, candidate(1, None)).best
    again = registry.register(recipe, candidate(1, 0.4))
    assert (again.version, again.best) == ("1", True)
    (version,) = mlflow_client.open_client(uri).search_model_versions("name = 'm'")
    assert version.tags["isr_dpo.dev_accuracy"] == "0.4"
    assert version.tags["isr_dpo.metric.accuracy"] == "0.4"
    assert version.tags["isr_dpo.recipe_digest"] == recipe.digest()
    assert version.source == str(Path("runs/a/policy-01").absolute())


def test_a_version_says_where_it_comes_from(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_at(uri)
    registry.register(recipe, candidate(2, 0.5))
    client = mlflow_client.open_client(uri)
    tags = client.get_model_version("m", "1").tags
    assert "isr_dpo.image" not in tags
    monkeypatch.setenv("ISR_DPO_IMAGE", "registry.example/isr-dpo-cpu@sha256:12ab")
    registry.register(recipe, candidate(2, 0.5))
    tags = {key.removeprefix("isr_dpo."): value for key, value in client.get_model_version("m", "1").tags.items()}
    assert tags["run_uri"] == str(Path("runs/a").absolute()), "the same from wherever it is promoted"
    expected = {
        "policy": "2",
        "round": "1",
        "recipe": "small",
        "recipe_digest": recipe.digest(),
        "dataset_digest": "data",
        "dev_digest": "dev",
        "grader": "rule-based",
        "code_version": "0.1.0+c0ffee",
        "image": "registry.example/isr-dpo-cpu@sha256:12ab",
        "metric.accuracy": "0.5",
    }
    assert {key: tags.get(key) for key in expected} == expected


def test_the_card_takes_a_late_evaluation_in(uri: str) -> None:
    client = mlflow_client.open_client(uri)
    registry.register(recipe_at(uri), candidate(1, None))
    assert "evaluation is pending" in client.get_model_version("m", "1").description
    registry.register(recipe_at(uri), candidate(1, 0.25))
    assert "25.0 %" in client.get_model_version("m", "1").description


def test_a_version_points_at_the_mlflow_run_of_its_training(uri: str) -> None:
    recipe = recipe_at(uri)
    assert tracking.parent_id(recipe, run_uri="runs/a") is None
    with tracking.step_run(recipe, run_uri="runs/a", run_id="x", step="train", index=0) as run:
        parent = run.parent_id
    assert tracking.parent_id(recipe, run_uri="runs/a") == parent
    assert tracking.parent_id(recipe, run_uri="runs/b") is None
    registry.register(recipe, candidate(1, 0.5), tracking_run_id=parent)
    assert mlflow_client.open_client(uri).get_model_version("m", "1").run_id == parent


def test_another_runs_policy_of_equal_bytes_is_a_version_of_its_own(uri: str) -> None:
    registry.register(recipe_at(uri), candidate(1, 0.9))
    other = registry.register(recipe_at(uri), candidate(1, 0.3, run_uri="runs/b"))
    assert (other.version, other.best) == ("2", True)
    assert alias(uri, "challenger") == "2", "the newest run's best"
    assert best_versions(uri) == ["2", "1"]


def test_a_registered_model_is_found_by_alias_or_version(uri: str) -> None:
    registry.register(recipe_at(uri), candidate(1, 0.5, uri="s3://bucket/run/policy-01"))
    assert registry.source_of("models:/m@challenger", uri=uri) == "s3://bucket/run/policy-01"
    assert registry.source_of("models:/m/1", uri=uri) == "s3://bucket/run/policy-01"
    for wrong in ("models:/m", "models:/m@nobody", "models:/other@challenger", "models:/m/2", "models:/m@a/b"):
        with pytest.raises(RecipeError, match="m"):
            registry.source_of(wrong, uri=uri)


def test_a_local_policy_is_refused_for_a_server_before_anything_is_sent() -> None:
    with pytest.raises(RecipeError, match="use an s3:// run URI"):
        registry.check_source(recipe_at("http://127.0.0.1:1"), "runs/a")
    registry.check_source(recipe_at("http://127.0.0.1:1"), "s3://bucket/a")
    registry.check_source(recipe_at("sqlite:///x.db"), "runs/a")


def test_the_mlmodel_file_is_the_same_bytes_every_time() -> None:
    content = pyfunc.mlmodel_file()
    assert content == pyfunc.mlmodel_file()
    assert not any(word in content.decode() for word in ("uuid", "time", "run_id"))


def test_a_registered_policy_loads_by_alias_and_answers(uri: str, tmp_path: Path, loading: types.ModuleType) -> None:
    folder = tmp_path / "policy-01"
    folder.mkdir()
    (folder / "MLmodel").write_bytes(pyfunc.mlmodel_file())
    (folder / "weights").write_text("w1")
    registry.register(recipe_at(uri), candidate(1, 0.5, uri=str(folder)))
    loading.set_tracking_uri(uri)
    loading.set_registry_uri(uri)
    model = loading.pyfunc.load_model("models:/m@challenger")

    import pandas

    asked = [{"video": "a.mp4", "question": "what?"}, {"video": "b.mp4", "question": "why?"}]
    answers = ["w1 a.mp4 what?", "w1 b.mp4 why?"]
    assert model.predict(pandas.DataFrame(asked)) == answers
    assert model.predict(asked) == answers
    assert model.predict(asked[0]) == answers[:1]
    with pytest.raises(loading.MlflowException, match="question"):
        model.predict({"video": "a.mp4"})
