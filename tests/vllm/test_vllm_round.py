"""A round through the step functions with `engine.kind: vllm`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm.sampling_params", reason="`make test-vllm` makes the environment for this")

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.data.world import draw
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from tests.loop import read, recipe_for, run_loop
from tests.vllm import published

ENGINE = {"kind": "vllm", "rows_per_part": 5, "fused": False}
LAST = ("judge", 1)
GRACE_SECONDS = 15
"""Of a spot machine's pod between SIGTERM and SIGKILL."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published.build(tmp_path_factory.mktemp("model"), "video_llava")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "drawn"
    draw(folder, seed=0, train=12, dev=6, test=6, seed_preferences=4)
    return folder


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    return recipe_for(model, world, tracking, engine=ENGINE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> str:
    uri = str(tmp_path_factory.mktemp("finished") / "run")
    run_loop(recipe, uri, until=LAST)
    return uri


def rows(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read(uri).splitlines()]


def test_a_round_gives_the_rows_of_the_three_stages(finished: str) -> None:
    made = {name: layout.round_output(finished, 1, name) for name in ("responses", "contexts", "preferences")}
    responses, contexts = rows(made["responses"]), rows(made["contexts"])
    judged = [row for row in rows(made["preferences"]) if "outcome" in row]
    assert len(responses) == len({row["id"] for row in responses}) == len(judged) == 12
    assert {row["video"] for row in contexts} == {row["video"] for row in responses}
    assert all(len(row["responses"]) == 2 for row in responses)
    assert any(row["outcome"] == "preferred" for row in judged)
    for uri in made.values():
        found = manifest.find(uri)
        assert found is not None
        assert not found.deterministic


def test_a_fused_round_by_two_workers_gives_the_same_directories(
    finished: str, model: Path, world: Path, tracking: str, tmp_path: Path
) -> None:
    """Side by side, the dev answers too: the same rows and seeds. Texts may differ with what shares a batch."""
    engine = {"kind": "vllm", "rows_per_part": 5, "workers": 2, "fused_videos": 3}
    recipe = recipe_for(model, world, tracking, engine=engine)
    assert recipe.engine.fused
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("train", 0))
    run_step("prefer", recipe, inputs_of("prefer", recipe, uri, 1), uri, 1)
    for name in ("responses", "contexts", "preferences"):
        fused, staged = (layout.round_output(run, 1, name) for run in (uri, finished))
        assert [known(row) for row in rows(fused)] == [known(row) for row in rows(staged)]
        made = manifest.find(fused)
        assert made is not None
        assert not made.deterministic
    assert rows(f"{layout.answers(uri, 1)}/dev") == rows(f"{layout.answers(finished, 1)}/dev")


def known(row: dict[str, Any]) -> Any:
    return row.get("id"), row["video"], row.get("seeds")


def test_greedy_answers_are_the_embedded_engines(
    finished: str, model: Path, world: Path, tracking: str, tmp_path: Path
) -> None:
    recipe = recipe_for(model, world, tracking)
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("answer", 1))
    ours, theirs = (rows(f"{layout.answers(run, 1)}/dev") for run in (finished, uri))
    assert ours == theirs
    assert len({json.dumps(row["model_prediction"]) for row in ours}) > 1


def test_a_round_ended_three_times_ends_with_the_same_rows(
    finished: str, recipe: Recipe, tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    """No row is lost or doubled."""
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("answer", 1))
    ends = {"responses": signal.SIGKILL, "contexts": signal.SIGTERM, "preferences": signal.SIGKILL}
    for name, ending in ends.items():
        end_when(Path(layout.round_output(uri, 1, name)), ending, uri, model, world, tracking)
    for name, index in (("generate", 1), ("retrospect", 1), LAST):
        run_step(name, recipe, inputs_of(name, recipe, uri, index), uri, index)
    for name in ("responses", "contexts", "preferences"):
        whole, mended = (rows(layout.round_output(run, 1, name)) for run in (finished, uri))
        assert [row.get("id", row["video"]) for row in mended] == [row.get("id", row["video"]) for row in whole]


def end_when(folder: Path, ending: signal.Signals, *arguments: object) -> None:
    """Runs the round in a process of its own, and ends it once `folder` holds a part."""
    command = [sys.executable, "-m", "tests.vllm.test_vllm_round", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not list(folder.glob("*-00000.jsonl")) and process.poll() is None:
            assert time.monotonic() < until, "no part within 240 s"
            time.sleep(0.01)
    finally:
        process.send_signal(ending)
        ended = process.wait(timeout=GRACE_SECONDS)
    assert ended == -ending


if __name__ == "__main__":  # python -m tests.vllm.test_vllm_round RUN MODEL WORLD TRACKING: what is killed
    run, model_folder, world_folder, tracking_uri = sys.argv[1:]
    run_loop(recipe_for(Path(model_folder), Path(world_folder), tracking_uri, engine=ENGINE), run, until=LAST)
