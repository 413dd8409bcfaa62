"""A real `mlflow server`, on SQLite and on PostgreSQL, with the runs in an S3 store: registered, promoted, rolled back,
loaded by alias."""

from __future__ import annotations

import os
import sys
import types
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, pyfunc
from isr_dpo.cli import main
from isr_dpo.errors import GuardTripped, RecipeError
from isr_dpo.mlflow_client import open_client
from isr_dpo.stores import join, write_bytes
from tests.registry.registered import RegisteredRun, aliases, everything, marks
from tests.servers import postgres
from tests.servers.mlflow_server import shared_server


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    if postgres.missing():
        pytest.skip(postgres.missing())
    with postgres.serve() as made:
        yield f"postgresql+psycopg2://mlflow:{made.password}@{made.host}:{made.port}/mlflow"


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> str:
    return shared_server(request.getfixturevalue("database") if request.param == "postgresql" else None)


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow, whose addresses are restored afterwards; a policy tells its weights and what it is asked."""
    import mlflow

    class Answerer:
        def __init__(self, folder: Path) -> None:
            self.weights = (folder / "weights").read_text()

        def ask(self, video: Path, question: str) -> str:
            return f"{self.weights} {video} {question}"

    ask = types.ModuleType("isr_dpo.ask")
    ask.Answerer = Answerer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "isr_dpo.ask", ask)
    addresses = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    yield mlflow
    mlflow.set_tracking_uri(addresses[0])
    mlflow.set_registry_uri(addresses[1])


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_a_champion_is_promoted_rolled_back_and_loaded_from_where_it_lies(
    server: str,
    run_uri: str,
    loading: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"])
    name = f"m-{uuid.uuid4().hex[:8]}"
    run = RegisteredRun(server, tmp_path, place=run_uri, model={"start": "a-folder", "registered_name": name})
    for index, right in ((1, 20), (2, 30), (3, 10)):
        for file, content in (("MLmodel", pyfunc.mlmodel_file()), ("weights", f"w{index}".encode())):
            write_bytes(join(layout.policy(run_uri, index), file), content)
        assert run.policy(index, marks(right=right)) == run.register(index, marks(right=right)) == str(index)

    def promote(*arguments: str) -> int:
        return main(["promote", name, *arguments, "--tracking-uri", server])

    def asked() -> list[str]:
        loading.set_tracking_uri(server)
        loading.set_registry_uri(server)
        model = loading.pyfunc.load_model(f"models:/{name}@champion")
        return list(model.predict({"video": "a.mp4", "question": "what?"}))

    assert promote("--version", "1") == 0
    assert asked() == ["w1 a.mp4 what?"]
    before = everything(server, name)
    assert promote("--dry-run") == 0
    assert everything(server, name) == before
    assert promote() == 0
    assert aliases(server, name) == {"challenger": "2", "champion": "2", "previous": "1"}
    assert asked() == ["w2 a.mp4 what?"]
    assert promote("--version", "3") == GuardTripped.exit_code
    assert main(["rollback", name, "--tracking-uri", server]) == 0
    assert asked() == ["w1 a.mp4 what?"]
    assert main(["rollback", name, "--tracking-uri", server]) == 0
    assert aliases(server, name) == {"challenger": "2", "champion": "2", "previous": "1"}
    version = open_client(server).get_model_version(name, "2")
    assert version.source == layout.policy(run_uri, 2)
    assert "75.0 %" in version.description
    assert version.tags["isr_dpo.gate"] == "rollback from version 1"
    assert "Traceback" not in capsys.readouterr().err


def test_a_database_of_postgresql_does_without_a_server(database: str, tmp_path: Path) -> None:
    name = f"m-{uuid.uuid4().hex[:8]}"
    run = RegisteredRun(database, tmp_path, model={"start": "a-folder", "registered_name": name})
    run.policy(1, marks(right=20))
    run.policy(2, marks(right=30))
    assert main(["promote", name, "--version", "1", "--tracking-uri", database]) == 0
    assert main(["promote", name, "--tracking-uri", database]) == 0
    assert main(["rollback", name, "--tracking-uri", database]) == 0
    assert aliases(database, name) == {"challenger": "2", "champion": "1", "previous": "2"}


def test_a_driver_that_is_not_there_is_named_without_the_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    address = "postgresql+psycopg2://mlflow:{}@127.0.0.1:1/mlflow".format("hidden")
    assert main(["promote", "m", "--tracking-uri", address]) == RecipeError.exit_code
    said = capsys.readouterr().err
    assert "postgresql+psycopg2://127.0.0.1:1/mlflow: its driver psycopg2 is not installed" in said
    assert "hidden" not in said


def test_a_server_takes_no_local_policy(server: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use an s3:// run URI"):
        RegisteredRun(server, tmp_path).policy(1, marks(right=20))
