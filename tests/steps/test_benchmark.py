"""Systems that are not trained here: answered for, or their answers imported, and evaluated as policy-00."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.data.frames import FrameStore
from isr_dpo.data.world import draw
from isr_dpo.errors import DataError, RecipeError, StaleOutput
from isr_dpo.manifest import Manifest
from isr_dpo.records import Grade, Prediction, TestRow, read_rows
from isr_dpo.steps import run_step
from isr_dpo.steps.common import metrics_of, rows_of
from isr_dpo.steps.inputs import inputs_of
from tests.loop import recipe_for, run_loop
from tests.servers.model_server import KEY, Answer, model_server

EVALUATED = ("evaluate", 0)


def benchmark(world: Path, tracking: str, **changes: Any) -> Recipe:
    """A recipe of two sets; without `model` or another system it is refused."""
    sets = {name: str(world / f"{name}.qa.jsonl") for name in ("dev", "test")}
    tree = recipe_for(Path(), world, tracking).model_dump() | {"iterations": 0, "model": {}, "data": {"sets": sets}}
    return Recipe.model_validate(tree | changes)


def made(uri: str) -> Manifest:
    found = manifest.find(uri)
    assert found is not None
    return found


def rows(path: Path) -> list[TestRow]:
    return list(read_rows(path.read_text().splitlines(), TestRow, where=str(path)))


def answers(run: str, name: str) -> list[Prediction]:
    return rows_of(made(f"{layout.answers(run, 0)}/{name}"), Prediction)


def grades(run: str, name: str) -> list[Grade]:
    return rows_of(made(layout.graded(run, 0, "caption", name)), Grade)


def test_a_models_answers_to_all_sets_are_graded_and_only_their_videos_decoded(
    world: Path, model: Path, tracking: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    start = {"start": str(model), "device": "cpu"}
    recipe = benchmark(world, tracking, model=start, evaluate={"full_at": []})
    run_loop(recipe, run)
    for name in ("dev", "test"):
        asked = rows(world / f"{name}.qa.jsonl")
        assert [row.id for row in answers(run, name)] == [row.id for row in asked]
        assert [grade.id for grade in grades(run, name)] == [row.id for row in asked]
    videos = {row.video for name in ("dev", "test") for row in rows(world / f"{name}.qa.jsonl")}
    assert set(FrameStore(manifest.files(made(layout.frames(run)))).videos()) == videos
    assert {name for name in made(layout.dataset(run)).files if name.startswith("set-")} == {
        "set-dev.jsonl",
        "set-test.jsonl",
    }
    assert made(layout.dataset(run)).rows == 12
    assert (
        Path(layout.report(run)).read_text().startswith("<!doctype html>".replace("doctype", "DOCTYPE"))
        or Path(layout.report(run)).is_file()
    )
    with pytest.raises(RecipeError, match=r"a benchmark \(iterations: 0\): it has trained no policy to register"):
        run_step("register", recipe, inputs_of("register", recipe, run, 0), run, 0)


def test_a_served_model_needs_no_folder_and_gets_frames_that_are_only_made_smaller(
    world: Path, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    run = str(tmp_path / "run")
    with model_server(lambda asked, n: Answer(text="a red ball")) as server:
        engine = {"kind": "openai", "model": "m", "base_url": server.url}
        recipe = benchmark(world, tracking, engine=engine)
        run_loop(recipe, run)
        assert {row.model_prediction.message for row in answers(run, "test")} == {"a red ball"}
        assert len(server.asked) == 12
        other = benchmark(world, tracking, engine={**engine, "model": "other"})
        with pytest.raises(StaleOutput, match="the run began from another model than served:other is now"):
            run_loop(other, run)
    assert made(layout.policy(run, 0)).uri == "served:m"
    store = FrameStore(manifest.files(made(layout.frames(run))))
    assert {store.read(video).shape for video in store.videos()} == {(8, 128, 128, 3)}  # as drawn
    monkeypatch.delenv("OPENAI_API_KEY")
    other = str(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"engine\.kind is openai, but OPENAI_API_KEY is not set"):
        run_step("preflight", recipe, inputs_of("preflight", recipe, other, 0), other, 0)


def published(row: TestRow, said: str, **changes: Any) -> dict[str, Any]:
    """A row of a published prediction file."""
    return {
        "id": row.id,
        "modal_path": f"/data/{row.video}",
        "query": f"<video>\n{row.question}",
        "answer": row.answer,
        "prompt_format": "vicuna",
        "model_prediction": {"status": "success", "message": said},
        **changes,
    }


def write(path: Path, lines: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def blind(world: Path, tmp_path: Path) -> Path:
    """The world's sets without any video."""
    folder = tmp_path / "blind"
    folder.mkdir()
    for name in ("dev", "test"):
        shutil.copy(world / f"{name}.qa.jsonl", folder)
    return folder


def test_prediction_files_are_graded_without_a_model_or_a_video(blind: Path, tracking: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    dev, test = rows(blind / "dev.qa.jsonl"), rows(blind / "test.qa.jsonl")
    whole = [published(row, row.answer) for row in reversed(dev)]
    holes = [published(row, row.answer) for row in test[2:]]
    holes[0]["query"] = "what is it ?"
    holes[1]["model_prediction"] = {"status": "failed", "message": "out of memory"}
    files = {"dev": write(tmp_path / "dev.jsonl", whole), "test": write(tmp_path / "test.jsonl", holes)}
    recipe = benchmark(blind, tracking, answer={"predictions": files})
    run_loop(recipe, run)
    assert made(layout.policy(run, 0)).uri == "predictions"
    assert manifest.find(layout.frames(run)) is None
    assert [row.id for row in answers(run, "dev")] == [row.id for row in dev]
    counted = metrics_of(made(f"{layout.answers(run, 0)}/test"))
    assert (counted["missing"], counted["asked_otherwise"], counted["not_asked"]) == (2, 1, 3)
    assert metrics_of(made(layout.graded(run, 0, "caption", "dev")))["accuracy"] == 1
    assert [grade.status for grade in grades(run, "test")].count("unscored") == 3
    assert metrics_of(made(layout.graded(run, 0, "caption", "test")))["accuracy"] == 1  # of those that are scored

    regraded = str(tmp_path / "regraded")
    finished = {name: f"{layout.answers(run, 0)}/{name}" for name in ("dev", "test")}
    run_loop(benchmark(blind, tracking, answer={"predictions": finished}), regraded)
    for name in ("dev", "test"):
        assert answers(regraded, name) == answers(run, name)
        assert grades(regraded, name) == grades(run, name)

    before = Path(layout.answers(run, 0), "dev", "manifest.json").stat().st_mtime_ns
    run_loop(recipe, run)
    assert Path(layout.answers(run, 0), "dev", "manifest.json").stat().st_mtime_ns == before
    write(tmp_path / "dev.jsonl", [published(row, "another answer") for row in dev])
    with pytest.raises(StaleOutput, match="answers/policy-00/dev was finished from something else: input predictions"):
        run_loop(recipe, run)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda lines: lines[1].update(id="else"),
            r"dev\.jsonl: prediction 'else' answers no question of this set of 6",
        ),
        (lambda lines: lines[1].update(lines[0]), r"dev\.jsonl: prediction '.*' stands twice"),
        (lambda lines: lines[1].update(answer="else"), "has the ground truth 'else', the set has .* another version"),
        (lambda lines: lines[1].pop("query"), r"dev\.jsonl:2: not a Prediction row: query: Field required"),
        (lambda lines: lines.clear(), r"answer\.predictions\.dev: .*dev\.jsonl is not there, or empty"),
    ],
)
def test_a_prediction_file_of_other_questions_is_refused_by_name(
    spoil: Any, reason: str, blind: Path, tracking: str, tmp_path: Path
) -> None:
    lines = [published(row, "red") for row in rows(blind / "dev.qa.jsonl")]
    files = {"test": write(tmp_path / "test.jsonl", [published(row, "red") for row in rows(blind / "test.qa.jsonl")])}
    spoil(lines)
    recipe = benchmark(blind, tracking, answer={"predictions": {"dev": write(tmp_path / "dev.jsonl", lines), **files}})
    with pytest.raises((DataError, RecipeError), match=reason):
        run_loop(recipe, str(tmp_path / "run"), until=EVALUATED)


def test_only_dev_is_answered_between_the_full_rounds(world: Path, model: Path, tracking: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    sets = {name: str(world / f"{name}.qa.jsonl") for name in ("dev", "test")}
    data = {"train": str(world / "train.jsonl"), "sets": sets}
    recipe = recipe_for(model, world, tracking, data=data, iterations=2, evaluate={"full_at": [2]})
    run_loop(recipe, run)
    answered = {f"{path.parent.parent.name}/{path.parent.name}" for path in Path(run, "answers").rglob("manifest.json")}
    assert answered == {"policy-01/dev", "policy-02/dev", "policy-02/test"}
    graded = {f"{path.parent.parent.name}/{path.parent.name}" for path in Path(run, "evaluation").rglob("metrics.json")}
    assert graded == {name.replace("/", "/caption-") for name in answered}


def test_a_set_that_no_policy_is_asked_is_not_decoded(world: Path, model: Path, tracking: str, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    draw(folder, seed=1, train=2, dev=2, test=2, seed_preferences=0)
    sets = {"dev": str(world / "dev.qa.jsonl"), "other": str(folder / "test.qa.jsonl")}
    data = {"train": str(world / "train.jsonl"), "sets": sets}
    run = str(tmp_path / "run")
    recipe = recipe_for(model, world, tracking, data=data, evaluate={"full_at": []})
    run_loop(recipe, run, until=("prepare", 0))
    assert not any(name.startswith("set-other") for name in made(layout.dataset(run)).files)
    videos = set(FrameStore(manifest.files(made(layout.frames(run)))).videos())
    assert not videos & {row.video for row in rows(folder / "test.qa.jsonl")}
