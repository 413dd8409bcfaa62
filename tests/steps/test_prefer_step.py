"""The fused round: the same directories, manifests and bytes as the three steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import isr_dpo.steps.prefer as step
from isr_dpo import engines, layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.errors import StaleOutput
from isr_dpo.parts import Share
from isr_dpo.steps import StepResult, execute, run_step
from isr_dpo.steps.execute import run_share
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.steps.prefer import taken
from tests.loop import recipe_for, run_loop

Change = Mapping[str, Any]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory, model: Path, world: Path, tracking: str) -> Path:
    """A run whose policy-01 stands, not to be changed."""
    uri = tmp_path_factory.mktemp("started") / "run"
    run_loop(recipe_for(model, world, tracking), str(uri), until=("train", 0))
    return uri


@pytest.fixture
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    return recipe_for(model, world, tracking)


def copy(run: Path, target: Path) -> str:
    """The run at another place, which its manifests then name."""
    shutil.copytree(run, target)
    for file in target.rglob("manifest.json"):
        file.write_text(file.read_text().replace(str(run), str(target)))
    return str(target)


def do(name: str, recipe: Recipe, uri: str, index: int) -> StepResult:
    return run_step(name, recipe, inputs_of(name, recipe, uri, index), uri, index)


def by_stages(recipe: Recipe, uri: str, index: int) -> None:
    design = recipe.retrospect.context
    described = design != "none" and (design != "fixed" or index == 1)
    for name in ("generate", *(["retrospect"] if described else []), "judge"):
        do(name, recipe, uri, index)


def files(uri: str, index: int) -> dict[str, bytes]:
    """All files of a round but those of its training, and the dev answers; the run's own place taken out of them."""
    roots = [Path(uri, f"round-{index:02d}"), Path(layout.answers(uri, index))]
    found = [path for root in roots for path in root.rglob("*") if path.is_file() and "training" not in path.parts]
    return {str(path.relative_to(uri)): path.read_bytes().replace(uri.encode(), b"RUN") for path in found}


@pytest.mark.parametrize("design", ["retrospective", "fixed", "renew", "none", "shuffled"])
def test_two_rounds_leave_the_files_of_the_three_steps(
    design: str, started: Path, tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    changed = recipe_for(model, world, tracking, retrospect={"context": design, "max_new_tokens": 6})
    staged, fused = copy(started, tmp_path / "staged"), copy(started, tmp_path / "fused")
    for index in (1, 2):
        by_stages(changed, staged, index)
        do("prefer", changed, fused, index)
        for uri in (staged, fused):
            do("answer", changed, uri, index)
        assert files(fused, index) == files(staged, index)
        if index == 1:
            for uri in (staged, fused):
                do("train", changed, uri, 1)


def test_one_engine_does_it_all_and_the_dev_set_too(
    started: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy(started, tmp_path / "run")
    opened: list[object] = []
    original = engines.open_engine
    monkeypatch.setattr(engines, "open_engine", lambda *given: opened.append(given) or original(*given))
    made = do("prefer", recipe, uri, 1)
    answered = do("answer", recipe, uri, 1)
    assert len(opened) == 1
    assert answered.reused
    assert not made.reused
    assert made.metrics["preferences/rows"] == made.metrics["responses/rows"] == 12
    again = do("prefer", recipe, uri, 1)
    assert again.reused
    assert (again.manifest, again.metrics) == (made.manifest, made.metrics)
    assert len(opened) == 1


def test_the_artifact_gives_every_step_what_it_takes(started: Path, tmp_path: Path, recipe: Recipe) -> None:
    uri = copy(started, tmp_path / "run")
    made = do("prefer", recipe, uri, 1).manifest
    preferences, contexts = (manifest.find(layout.round_output(uri, 1, name)) for name in ("preferences", "contexts"))
    assert taken(made, "preferences") == preferences
    assert taken(made, "previous") == taken(made, "contexts") == contexts
    assert preferences is not None
    assert taken(preferences, "preferences") == preferences


class Artifact:
    def __init__(self, path: Path, text: str = "") -> None:
        self.path, self.metadata = str(path), dict[str, Any]()
        path.write_text(text)

    def log_metric(self, metric: str, value: float) -> None:
        self.metadata[metric] = value


def test_a_component_is_given_the_artifact_of_the_round_before(started: Path, tmp_path: Path, recipe: Recipe) -> None:
    uri = copy(started, tmp_path / "run")
    first = do("prefer", recipe, uri, 1)
    do("train", recipe, uri, 1)
    given = inputs_of("prefer", recipe, uri, 2) | {"previous": first.manifest}
    inputs = {name: Artifact(tmp_path / name, made.to_json()) for name, made in given.items()}
    output, metrics = Artifact(tmp_path / "output"), Artifact(tmp_path / "metrics")
    execute("prefer", recipe.canonical(), uri, "run-1", 2, inputs, output, metrics)
    contexts = manifest.find(layout.round_output(uri, 2, "contexts"))
    assert contexts is not None
    assert contexts.inputs["previous"] == taken(first.manifest, "contexts").digest
    assert json.loads(Path(output.path).read_text())["kind"] == "preferred"
    assert metrics.metadata["preferences_rows"] == 12


@pytest.mark.parametrize("parts", [0, 1])
def test_an_interrupted_round_goes_on_from_its_parts(
    parts: int, started: Path, tmp_path: Path, model: Path, world: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = recipe_for(model, world, tracking, engine={"batch_rows": 8, "rows_per_part": 2})
    uri, undisturbed = copy(started, tmp_path / "run"), copy(started, tmp_path / "undisturbed")
    do("prefer", small, undisturbed, 1)
    asked: list[str] = []

    def interrupted(videos: Any, *given: Any, **named: Any) -> Any:
        if len(asked) == parts:
            raise KeyboardInterrupt
        asked.extend(video.video for video in videos[:1])
        return step_prefer(videos, *given, **named)

    step_prefer = step.prefer
    with monkeypatch.context() as patch:
        patch.setattr(step, "prefer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            do("prefer", small, uri, 1)
    assert len(list(Path(layout.round_output(uri, 1, "prefer")).glob("part-*"))) == parts
    do("prefer", small, uri, 1)
    assert files(uri, 1) == files(undisturbed, 1)


@pytest.mark.parametrize("killed_in", ["retrospect", "judge"])
def test_a_round_killed_while_its_directories_are_completed_goes_on(
    killed_in: str, started: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, undisturbed = copy(started, tmp_path / "run"), copy(started, tmp_path / "undisturbed")
    do("prefer", recipe, undisturbed, 1)
    directory = {"retrospect": "contexts", "judge": "preferences"}[killed_in]

    with monkeypatch.context() as patch:
        patch.setitem(step._STAGES, directory, step._STAGES[directory]._replace(run=_interrupted))
        with pytest.raises(KeyboardInterrupt):
            do("prefer", recipe, uri, 1)
    monkeypatch.setattr(engines, "open_engine", None)  # nothing is asked again
    do("prefer", recipe, uri, 1)
    assert files(uri, 1) == files(undisturbed, 1)


def test_a_round_that_the_steps_have_begun_is_finished_by_them(
    started: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy(started, tmp_path / "run")
    by_hand = do("generate", recipe, uri, 1).manifest
    monkeypatch.setattr(step, "prefer", None)
    do("prefer", recipe, uri, 1)
    judged = manifest.find(layout.round_output(uri, 1, "preferences"))
    assert judged is not None
    assert judged.inputs["responses"] == by_hand.digest


def test_rows_of_another_engine_are_not_mixed_in(
    started: Path, tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = copy(started, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setitem(step._STAGES, "responses", step._STAGES["responses"]._replace(run=_interrupted))
        with pytest.raises(KeyboardInterrupt):
            do("prefer", recipe, uri, 1)
    shutil.rmtree(layout.round_output(uri, 1, "responses"))
    kept = Path(layout.round_output(uri, 1, "prefer"), "part-00000.jsonl")
    do("generate", recipe, uri, 1)
    kept.write_text(kept.read_text().replace('"finish": ["stop"', '"finish": ["other"').replace('"length"', '"other"'))
    with pytest.raises(StaleOutput, match="was finished with other rows than"):
        do("prefer", recipe, uri, 1)


def _interrupted(*_: Any) -> StepResult:
    raise KeyboardInterrupt


def test_pods_that_share_a_round_leave_the_same_files(
    started: Path, tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    small = recipe_for(model, world, tracking, engine={"batch_rows": 8, "rows_per_part": 2})
    uri, alone = copy(started, tmp_path / "run"), copy(started, tmp_path / "alone")
    do("prefer", small, alone, 1)
    given = inputs_of("prefer", small, uri, 1)
    for number in (2, 1):
        run_share("prefer", small, given, uri, 1, Share(number, 2))
    do("prefer", small, uri, 1)
    assert files(uri, 1) == files(alone, 1)
