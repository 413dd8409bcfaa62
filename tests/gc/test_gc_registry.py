"""Against a real MLflow database: what it names stays, and without it nothing goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo import cli, layout
from isr_dpo.errors import OutsideError, RecipeError
from isr_dpo.gc.kept import read_registry
from isr_dpo.mlflow_client import open_client
from isr_dpo.stores import open_store
from isr_dpo.stores.lock import owner
from tests.gc import cleared
from tests.servers.mlflow_server import fresh_database


def register(uri: str, run_uri: str, *aliases: str, policies: int = 6, name: str = "small") -> None:
    """Policies 01 to the last as versions; `aliases` such as `champion=2`."""
    client = open_client(uri)
    client.create_registered_model(name)
    for index in range(1, policies + 1):
        source = str(Path(layout.policy(run_uri, index)).absolute())
        client.create_model_version(name, source=source, tags={"isr_dpo.run_uri": run_uri})
    for alias, version in (alias.split("=") for alias in aliases):
        client.set_registered_model_alias(name, alias, version)


def weights_stand(run_uri: str) -> list[int]:
    names = open_store(run_uri).list(run_uri)
    return sorted({int(name[7:9]) for name in names if name.startswith("policy-") and name.endswith(".safetensors")})


def test_whatever_has_an_alias_and_the_best_of_a_run_are_needed(tmp_path: Path) -> None:
    uri, run = fresh_database(tmp_path), str(tmp_path / "run")
    register(uri, run, "champion=2", "previous=3")
    register(uri, str(tmp_path / "other"), "champion=1", policies=1, name="another")
    open_client(uri).set_model_version_tag("small", "4", "best-of-run", "true")
    found = read_registry(uri)
    assert found.policies(run) == {2: ["champion of small"], 3: ["previous of small"], 4: ["best of its run"]}
    assert found.policies(str(tmp_path / "other")) == {1: ["champion of another"]}
    assert found.runs == {run, str(tmp_path / "other")}


def test_the_command_says_what_goes_and_who_keeps_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, run = fresh_database(tmp_path), str(tmp_path / "runs" / "one")
    cleared.run(run, tracking=uri)
    register(uri, run, "champion=2", "previous=3")
    before = cleared.digest(run)
    assert cli.main(["gc", run, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would be removed" in said
    assert ["weights", "of", "policies", "not", "kept", "1", "1", "kB"] in [line.split() for line in said.splitlines()]
    assert "kept: policy-02 (champion of small)" in said
    assert "kept: policy-01 (evaluate.full_at)" in said
    assert cleared.digest(run) == before
    assert cli.main(["gc", run + "/", "--keep", "4"]) == 0
    assert "removed\n" in capsys.readouterr().out
    assert weights_stand(run) == [1, 2, 3, 4, 5, 6]
    assert cli.main(["gc", run]) == 0
    assert weights_stand(run) == [1, 2, 3, 5, 6]
    assert cli.main(["gc", run]) == 0
    assert "one: 0 B removed" in capsys.readouterr().out


def test_without_its_registry_nothing_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    cleared.run(run, tracking="http://127.0.0.1:9")
    before = cleared.digest(run)
    assert cli.main(["gc", run]) == OutsideError.exit_code
    assert "MLflow at http://127.0.0.1:9" in capsys.readouterr().err
    assert cli.main(["gc", run, "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == RecipeError.exit_code
    assert "there is no MLflow database" in capsys.readouterr().err
    assert cleared.digest(run) == before


def test_wrong_arguments_and_live_runs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri, run = fresh_database(tmp_path), str(tmp_path / "run")
    cleared.run(run, tracking=uri)
    assert cli.main(["gc", str(tmp_path / "none")]) == 3
    assert "no run.json there, so no run" in capsys.readouterr().err
    assert cli.main(["gc", run, "--keep", "17"]) == 3
    assert "--keep 17: no such policy of its own" in capsys.readouterr().err
    with owner(run, "live"):
        assert cli.main(["gc", run]) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert "belongs to the run 'live', which is alive" in line
