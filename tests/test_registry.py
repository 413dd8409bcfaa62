from __future__ import annotations

import secrets
import sys
import types
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isr_dpo import mlflow_client, pyfunc, registry
from isr_dpo.config import Recipe
from isr_dpo.errors import GuardTripped, RecipeError
from isr_dpo.registry import Candidate
from tests.servers.mlflow_server import fresh_database, shared_server


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
        metrics={} if accuracy is None else {"dev/accuracy": accuracy},
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
    assert version.tags["isr_dpo.metric.dev/accuracy"] == "0.4"
    assert version.tags["isr_dpo.recipe_digest"] == recipe.digest()
    assert version.source == str(Path("runs/a/policy-01").absolute())


def test_another_runs_policy_of_equal_bytes_is_a_version_of_its_own(uri: str) -> None:
    registry.register(recipe_at(uri), candidate(1, 0.9))
    other = registry.register(recipe_at(uri), candidate(1, 0.3, run_uri="runs/b"))
    assert (other.version, other.best) == ("2", True)
    assert alias(uri, "challenger") == "2", "the newest run's best"
    assert best_versions(uri) == ["2", "1"]


def test_promotion_keeps_the_former_champion_and_rollback_brings_it_back(uri: str) -> None:
    recipe = recipe_at(uri)
    registry.register(recipe, candidate(1, 0.5))
    first = registry.promote("m", uri=uri)
    assert (first.champion, first.previous, first.done) == ("1", None, True)
    with pytest.raises(RecipeError, match="no previous champion"):
        registry.rollback("m", uri=uri)

    registry.register(recipe, candidate(2, 0.7))
    assert not registry.promote("m", uri=uri, dry_run=True).done
    assert alias(uri, "champion") == "1"
    second = registry.promote("m", uri=uri)
    assert (second.champion, second.previous) == ("2", "1")
    assert (alias(uri, "champion"), alias(uri, "previous")) == ("2", "1")
    assert not registry.promote("m", uri=uri).done, "it is the champion already"
    assert alias(uri, "previous") == "1"

    assert not registry.rollback("m", uri=uri, dry_run=True).done
    assert alias(uri, "champion") == "2"
    registry.rollback("m", uri=uri)
    assert (alias(uri, "champion"), alias(uri, "previous")) == ("1", "2")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (candidate(2, 0.4), r"0\.4000.*0\.5000"),
        (candidate(2, None), "evaluation on the dev set is missing"),
        (candidate(2, 0.9, grader="gpt-4o-mini"), "different graders: gpt-4o-mini and rule-based"),
        (candidate(2, 0.9, dev_digest="other"), "different dev sets"),
    ],
    ids=["worse", "ungraded", "other grader", "other questions"],
)
def test_a_worse_or_incomparable_version_is_promoted_by_force_only(uri: str, second: Candidate, reason: str) -> None:
    recipe = recipe_at(uri)
    registry.register(recipe, candidate(1, 0.5))
    registry.promote("m", uri=uri)
    registry.register(recipe, second)
    with pytest.raises(GuardTripped, match=reason):
        registry.promote("m", uri=uri, version="2")
    assert alias(uri, "champion") == "1"
    assert registry.promote("m", uri=uri, version="2", force=True).done
    assert alias(uri, "champion") == "2"


def test_unknown_names_are_named(uri: str) -> None:
    with pytest.raises(RecipeError, match="no registered model 'm'"):
        registry.promote("m", uri=uri)
    registry.register(recipe_at(uri), candidate(1, None))
    with pytest.raises(RecipeError, match=r"no alias 'challenger'; it has none"):
        registry.promote("m", uri=uri)
    with pytest.raises(RecipeError, match="no version 7 of 'm'"):
        registry.promote("m", uri=uri, version="7")


def test_a_registered_model_is_found_by_alias_or_version(uri: str) -> None:
    registry.register(recipe_at(uri), candidate(1, 0.5, uri="s3://bucket/run/policy-01"))
    assert registry.source_of("models:/m@challenger", uri=uri) == "s3://bucket/run/policy-01"
    assert registry.source_of("models:/m/1", uri=uri) == "s3://bucket/run/policy-01"
    for wrong in ("models:/m", "models:/m@nobody", "models:/other@challenger", "models:/m/2", "models:/m@a/b"):
        with pytest.raises(RecipeError, match="m"):
            registry.source_of(wrong, uri=uri)


def test_looking_for_a_model_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no MLflow database .*typo\.db"):
        registry.promote("m", uri=f"sqlite:///{tmp_path}/typo.db")
    assert list(tmp_path.iterdir()) == []


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


def test_a_real_server_takes_an_s3_policy_and_it_loads_from_there(
    loading: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    storage = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    storage.start()
    try:
        endpoint = "http://{}:{}".format(*storage.get_host_and_port())
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        keys = {**{name: secrets.token_hex(16) for name in names}, "AWS_DEFAULT_REGION": "us-east-1"}
        for key, value in {**keys, "MLFLOW_S3_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(key, value)
        s3 = boto3.client("s3", endpoint_url=endpoint)
        s3.create_bucket(Bucket="bucket")
        for key, content in (("MLmodel", pyfunc.mlmodel_file()), ("weights", b"w3")):
            s3.put_object(Bucket="bucket", Key=f"run/policy-01/{key}", Body=content)

        url, name = shared_server(), f"m-{uuid.uuid4().hex[:8]}"
        made = candidate(1, 0.5, run_uri="s3://bucket/run", uri="s3://bucket/run/policy-01")
        for _ in range(2):
            assert registry.register(recipe_at(url, name), made).version == "1"
        assert registry.promote(name, uri=url).champion == "1"
        loading.set_tracking_uri(url)
        loading.set_registry_uri(url)
        model = loading.pyfunc.load_model(f"models:/{name}@champion")
        assert model.predict({"video": "a.mp4", "question": "what?"}) == ["w3 a.mp4 what?"]
    finally:
        storage.stop()
