"""The cpu image, really built, and run as a restricted pod runs it: a user without rights, a root file system that
cannot be written, no network but loopback. `make test-images` runs these (some minutes)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.manifest import Manifest
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from tests.images import containers
from tests.images.containers import Podman

REPOSITORY = Path(__file__).parents[2]
IMAGE = "localhost/isr-dpo-cpu:test"
USER = 10001

pytestmark = [
    pytest.mark.skipif("ISR_DPO_TEST_IMAGES" not in os.environ, reason="an image is built: make test-images"),
    pytest.mark.skipif(bool(containers.missing()), reason=containers.missing()),
]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With the image built."""
    folder = tmp_path_factory.mktemp("containers")
    podman = Podman(folder)
    try:
        podman.make_base()
        (extras,) = re.findall(r"requirements\.py pyproject\.toml (\S+)", Path("images/cpu/Dockerfile").read_text())
        settings = containers.wheelhouse(folder, extras=extras)
        flags = f"--network=none --isolation=oci --volume={folder / 'wheels'}:/wheels:ro"
        asked = {"TAG": "test", "BASE_IMAGE": containers.BASE, "PIP_CONFIG": str(settings), "BUILD_FLAGS": flags}
        built = subprocess.run(
            ["images/build.sh", "cpu"], env=podman.environment | asked, capture_output=True, text=True, timeout=550
        )
        assert built.returncode == 0, built.stderr[-3000:]
        yield podman
    finally:
        podman.clean()


def run(podman: Podman, *command: str, mounts: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """`command` as a pod of the restricted profile runs it."""
    restricted = ["--read-only", "--read-only-tmpfs=false", "--network=none", "--cap-drop=all"]
    restricted += ["--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777", "--tmpfs=/cache:U"]
    return podman("run", "--rm", *restricted, *(f"--volume={m}" for m in mounts), IMAGE, *command)


def test_it_runs_as_a_user_without_rights_who_can_write_only_what_is_mounted(podman: Podman) -> None:
    done = run(podman, "sh", "-c", "id -u; touch /anywhere || touch /opt/isr-dpo/x || touch /cache/x && echo cached")
    assert done.stdout.split() == [str(USER), "cached"], done


def test_it_holds_no_torch_and_no_compiler(podman: Podman) -> None:
    found = run(podman, "sh", "-c", "python3 -c 'import torch' 2>&1 | tail -1; command -v gcc cc g++; true").stdout
    assert found == "ModuleNotFoundError: No module named 'torch'\n"


def test_its_labels_say_what_it_is_and_from_which_commit(podman: Podman) -> None:
    (told,) = json.loads(podman("image", "inspect", IMAGE).stdout)
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in told["Labels"].items()}
    assert labels["title"] == "isr-dpo-cpu"
    assert labels["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}", labels["revision"])
    assert told["Config"]["User"] == f"{USER}:{USER}"


def test_a_step_completes_in_it_as_kfp_starts_it(podman: Podman, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path)
    run_uri = str(tmp_path / "run")
    for name in ("preflight", "prepare", "answer"):
        run_step(name, recipe, inputs_of(name, recipe, run_uri, 0), run_uri, 0)
    command = _kfp_command("evaluate", recipe, run_uri, inputs_of("evaluate", recipe, run_uri, 0), tmp_path)
    _open_to_all(tmp_path)

    done = run(podman, *command, mounts=(f"{tmp_path}:{tmp_path}",))

    assert done.returncode == 0, done.stderr[-3000:]
    graded = manifest.find(layout.graded(run_uri, 0, "caption", "dev"))
    assert graded is not None
    manifest.verify(graded)
    assert graded.rows == 2
    assert os.stat(manifest.local_folder(graded.uri) or "").st_uid == USER


def _recipe(folder: Path) -> Recipe:
    """A benchmark of two answers that stand in a file, so that nothing here needs a model."""
    rows, predictions = folder / "dev.qa.jsonl", folder / "predictions.jsonl"
    turns = [{"from": "human", "value": "<video>\nwhat colour?"}, {"from": "gpt", "value": "red"}]
    shown = {"video": "clip.mp4", "caption": "a red ball", "conversations": turns}
    rows.write_text(_lines({"id": str(number), **shown} for number in range(2)))
    said = {"modal_path": "clip.mp4", "query": "what colour?", "answer": "red"}
    outcome = {"status": "success", "message": "it is red"}
    predictions.write_text(_lines({"id": str(number), **said, "model_prediction": outcome} for number in range(2)))
    return Recipe.model_validate(
        {
            "name": "image",
            "iterations": 0,
            "data": {"sets": {"dev": str(rows)}},
            "answer": {"predictions": {"dev": str(predictions)}},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
    )


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _kfp_command(name: str, recipe: Recipe, run_uri: str, given: dict[str, Manifest], folder: Path) -> list[str]:
    """What the component's container is started with, as KFP's launcher fills it in."""
    from components.evaluate import evaluate

    def artifact(key: str, title: str) -> dict[str, Any]:
        return {"artifacts": [{"name": key, "type": {"schemaTitle": title}, "uri": str(folder / "kfp" / key)}]}

    (folder / "kfp").mkdir()
    for key, made in given.items():
        (folder / "kfp" / key).write_text(made.to_json())
    parameters = {"recipe": recipe.canonical(), "run_uri": run_uri, "run_id": "image", "index": 0}
    executor_input = {
        "inputs": {
            "parameterValues": parameters,
            "artifacts": {key: artifact(key, "system.Dataset") for key in given},
        },
        "outputs": {
            "artifacts": {"evaluation": artifact("made", "system.Dataset"), "metrics": artifact("m", "system.Metrics")},
            "outputFile": str(folder / "kfp" / "outputs.json"),
        },
    }
    container = evaluate.component_spec.implementation.container
    return [*container.command, "--executor_input", json.dumps(executor_input), "--function_to_execute", name]


def _open_to_all(folder: Path) -> None:
    """As the volume of a pod is to its fsGroup."""
    for path in (*folder.parents[:2], folder, *folder.rglob("*")):
        path.chmod(path.stat().st_mode | (0o777 if path.is_dir() else 0o666))
