"""What the pods of manifests/serving run before they serve."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from isr_dpo import outputs
from isr_dpo.cli import main
from isr_dpo.errors import CorruptOutput, DataError, RecipeError
from isr_dpo.manifest import Origin
from isr_dpo.mlflow_client import open_client
from isr_dpo.outputs import Output
from isr_dpo.stores import join, write_bytes
from tests.servers.mlflow_server import fresh_database

on_s3 = pytest.mark.parametrize("run_uri", ["moto"], indirect=True)


def finished(uri: str, weights: str = "one", kind: str = "policy") -> str:
    output = outputs.begin(uri, Origin(kind, "train", {}, "", ""))
    assert isinstance(output, Output)
    output.write("model.safetensors", weights.encode())
    output.seal(rows=0, deterministic=True)
    return uri


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """MLflow with an empty model m."""
    uri = fresh_database(tmp_path)
    open_client(uri).create_registered_model("m")
    return uri


def crown(registry: str, policy: str) -> None:
    client = open_client(registry)
    client.set_registered_model_alias("m", "champion", client.create_model_version("m", source=policy).version)


def run(*arguments: str | Path) -> None:
    assert main(["--debug", *map(str, arguments)]) == 0


@on_s3
def test_the_champion_is_fetched_and_linked(run_uri: str, registry: str, tmp_path: Path) -> None:
    crown(registry, finished(join(run_uri, "policy-01")))
    link = tmp_path / "models" / "champion"
    run("fetch-model", "models:/m@champion", link, "--tracking-uri", registry)
    assert (link / "model.safetensors").read_text() == "one"
    crown(registry, finished(join(run_uri, "policy-02"), "two"))
    run("fetch-model", "models:/m@champion", link, "--tracking-uri", registry)
    assert (link / "model.safetensors").read_text() == "two"


@on_s3
def test_a_pod_of_a_rollout_fetches_what_the_rollout_names(run_uri: str, tmp_path: Path) -> None:
    """Even while MLflow is away, and whatever the alias means by now."""
    pinned = finished(join(run_uri, "policy-01"))
    away = "http://127.0.0.1:9"
    run("fetch-model", "models:/m@champion", tmp_path / "model", "--pinned", pinned, "--tracking-uri", away)
    assert (tmp_path / "model" / "model.safetensors").read_text() == "one"


def test_before_the_first_rollout_the_alias_is_asked(registry: str, tmp_path: Path) -> None:
    crown(registry, finished(str(tmp_path / "policy-01")))
    run("fetch-model", "models:/m@champion", tmp_path / "model", "--pinned=", "--tracking-uri", registry)
    assert (tmp_path / "model" / "model.safetensors").read_text() == "one"


def test_the_link_holds_when_its_volume_is_mounted_elsewhere(tmp_path: Path) -> None:
    run("fetch-model", finished(str(tmp_path / "volume" / "policy-01")), tmp_path / "volume" / "champion")
    (tmp_path / "volume").rename(tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "champion" / "model.safetensors").read_text() == "one"


def test_what_is_no_whole_policy_is_refused(registry: str, tmp_path: Path) -> None:
    unfinished, preferences = str(tmp_path / "policy-03"), finished(str(tmp_path / "preferences"), kind="preferences")
    write_bytes(join(unfinished, "model.safetensors"), b"half")
    for folder in (unfinished, preferences, str(tmp_path / "nothing")):
        with pytest.raises(DataError, match="no finished policy there"):
            run("fetch-model", folder, tmp_path / "model")
    altered = finished(str(tmp_path / "policy-04"))
    (Path(altered) / "model.safetensors").write_text("six")
    with pytest.raises(CorruptOutput, match="altered"):
        run("fetch-model", altered, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    with pytest.raises(RecipeError, match="no alias 'champion'"):
        run("fetch-model", "models:/m@champion", tmp_path / "model", "--tracking-uri", registry)


def test_a_folder_that_holds_something_else_stays(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(DataError, match="there already"):
        run("fetch-model", finished(str(tmp_path / "policy-01")), tmp_path / "model")


def test_the_patch_names_the_champion_and_nothing_else(registry: str, tmp_path: Path) -> None:
    crown(registry, 's3://bucket/runs/a "b"/policy-05')
    run("serving-patch", "models:/m@champion", tmp_path / "patch.json", "--tracking-uri", registry)
    assert json.loads((tmp_path / "patch.json").read_text()) == {
        "spec": {"template": {"metadata": {"annotations": {"isr-dpo/policy": 's3://bucket/runs/a "b"/policy-05'}}}}
    }


def test_without_a_champion_there_is_no_patch(registry: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no alias 'champion'"):
        run("serving-patch", "models:/m@champion", tmp_path / "patch.json", "--tracking-uri", registry)
    assert not (tmp_path / "patch.json").exists()
