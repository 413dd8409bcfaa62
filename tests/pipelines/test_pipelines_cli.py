import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from isr_dpo.config import Recipe
from isr_dpo.errors import RecipeError
from isr_dpo.mlflow_client import open_client
from pipelines.__main__ import main
from pipelines.placement import FOLDER


def write(folder: Path, **keys: object) -> str:
    tree = {
        "name": "tiny",
        "model": {"start": "builtin:world", "registered_name": "tiny"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
        **keys,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.mark.parametrize(
    "command", [["compile"], *([name, "--run-uri", "run"] for name in ("run", "evaluate", "submit"))]
)
def test_an_unknown_recipe_names_the_packaged_ones(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "nothere"]) == RecipeError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "nothere" in line
    assert "smoke" in line


@pytest.mark.parametrize("command", [["compile"], ["run", "--run-uri", "run"], ["evaluate", "--run-uri", "run"]])
def test_an_unknown_key_is_named_with_the_accepted_ones(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, write(tmp_path, judge={"bye": "self"})]) == RecipeError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "judge.bye" in line
    assert "verdict" in line


def test_a_run_uri_of_no_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", write(tmp_path), "--run-uri", "ftp://host/run"]) == RecipeError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert "ftp" in line


def test_evaluate_trains_nothing_and_takes_the_model_from_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[Recipe, str]] = []
    monkeypatch.setattr("pipelines.local.run", lambda recipe, uri, *, run_id: taken.append((recipe, uri)) or 0)
    where = ["--run-uri", "runs/b"]
    assert main(["evaluate", write(tmp_path), *where, "--set", "evaluate.full_at=[2]"]) == 0
    assert main(["evaluate", write(tmp_path), *where, "--model", "s3://bucket/policy-09"]) == 0
    assert main(["evaluate", write(tmp_path), *where, "--model", "007"]) == 0  # a folder, no number
    assert [(recipe.iterations, recipe.model.start) for recipe, _ in taken] == [
        (0, "builtin:world"),
        (0, "s3://bucket/policy-09"),
        (0, "007"),
    ]
    assert {uri for _, uri in taken} == {"runs/b"}


def test_evaluate_takes_a_registered_model_by_its_alias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Recipe] = []
    monkeypatch.setattr("pipelines.local.run", lambda recipe, uri, *, run_id: taken.append(recipe) or 0)
    database = f"sqlite:///{tmp_path}/mlflow.db"
    client = open_client(database)
    client.create_registered_model("tiny")
    version = client.create_model_version("tiny", source=str(tmp_path / "policy-02"))
    client.set_registered_model_alias("tiny", "champion", version.version)
    command = ["evaluate", write(tmp_path, tracking={"uri": database}), "--run-uri", "runs/b", "--model"]
    assert main([*command, "models:/tiny@champion"]) == 0
    assert taken[0].model.start == str(tmp_path / "policy-02")
    assert main([*command, "models:/tiny@best"]) == RecipeError.exit_code
    assert "'tiny' has no alias 'best'" in capsys.readouterr().err


def test_a_benchmark_is_compiled_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "benchmarks"]) == 0
    assert "build/benchmarks-local.yaml: 10 sets, recipe " in capsys.readouterr().out


def test_a_package_is_compiled_for_a_placement_by_name_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "ours.yaml"
    own.write_text((FOLDER / "eks.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "smoke", "--placement", "gke"]) == 0
    assert main(["compile", "smoke", "--placement", str(own), "--kubernetes-manifest", "--namespace", "team"]) == 0
    first, second, command = capsys.readouterr().out.splitlines()
    assert first.startswith("build/smoke-gke.yaml: ")
    assert second.startswith("build/smoke-ours.yaml: ")
    assert command == "kubectl apply --server-side -f build/smoke-ours.yaml"
    assert "namespace: team" in (tmp_path / "build/smoke-ours.yaml").read_text()


def test_debug_shows_where_an_error_came_from() -> None:
    with pytest.raises(RecipeError):
        main(["compile", "nothere", "--debug"])


def test_submit_needs_a_recipe_or_a_policy_to_fork(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--run-uri", "s3://bucket/run"]) == RecipeError.exit_code
    assert "a RECIPE, or --fork POLICY" in capsys.readouterr().err


def test_compile_writes_the_named_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compile", "smoke"]) == 0
    assert "build/smoke-local.yaml" in capsys.readouterr().out
    assert (tmp_path / "build/smoke-local.yaml").stat().st_size > 0


def test_a_package_larger_than_a_cluster_takes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "package.yaml"
    assert main(["compile", write(tmp_path, iterations=30), "-o", str(output)]) == RecipeError.exit_code
    assert "iterations = 30" in capsys.readouterr().err
    assert not output.exists()


def test_wrong_input_is_refused_before_kfp_is_loaded(tmp_path: Path) -> None:
    code = "import sys; from pipelines.__main__ import main; main(['compile', 'nothere']); print('kfp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
