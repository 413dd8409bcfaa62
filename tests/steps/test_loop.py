"""The loop through its steps: what stands is kept, what changed is refused, ground truth stays unread."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from pathlib import Path

import pytest

from isr_dpo import layout, manifest, outputs, preflight
from isr_dpo.errors import CorruptOutput, DataError, GuardTripped, OutsideError, RecipeError, StaleOutput
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.tracking import finished_steps
from tests.loop import read, recipe_for, run_loop, standing, step_names


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path, world: Path, tracking: str) -> str:
    """The URI of a finished run, not to be changed."""
    uri = str(tmp_path_factory.mktemp("finished") / "run")
    run_loop(recipe_for(model, world, tracking), uri)
    return uri


@pytest.fixture
def copied(finished: str, tmp_path: Path) -> str:
    """A finished run to change. Its manifests name the new place."""
    uri = tmp_path / "run"
    shutil.copytree(finished, uri)
    for file in uri.rglob("manifest.json"):
        file.write_text(file.read_text().replace(finished, str(uri)))
    return str(uri)


def again(name: str, recipe, uri: str, index: int):  # type: ignore[no-untyped-def]
    return run_step(name, recipe, inputs_of(name, recipe, uri, index), uri, index)


def test_every_output_of_the_layout_stands_with_its_manifest(
    finished: str, model: Path, world: Path, tracking: str
) -> None:
    recipe = recipe_for(model, world, tracking)
    made = standing(recipe, finished)
    assert set(made) == {
        "dataset", "frames", "policy-01", "policy-02", "policy-03",
        *(f"{r}/{n}" for r in (1, 2) for n in ("responses", "contexts", "preferences", "training")),
    }  # fmt: skip
    keys = {"kind", "uri", "step", "inputs", "recipe_section_digest", "prompts_digest", "code_version"}
    keys |= {"deterministic", "rows", "files", "digest"}
    for file in Path(finished).rglob("manifest.json"):
        assert set(json.loads(file.read_text())) == keys
    assert made["policy-02"].inputs["preferences"] == made["1/preferences"].digest
    assert made["2/contexts"].inputs["previous"] == made["1/contexts"].digest
    assert Path(finished, "report", "index.html").is_file()


def test_every_step_has_its_nested_run_in_mlflow(finished: str, model: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(model, world, tracking)
    assert finished_steps(recipe, run_uri=finished) == set(step_names(recipe))


def test_a_finished_run_is_walked_through_without_work(copied: str, model: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(model, world, tracking)
    before = {p: p.stat().st_mtime_ns for p in Path(copied).rglob("*") if p.is_file() and "policy-0" in str(p)}
    for name, index in step_names(recipe):
        if name not in ("register", "report"):
            assert again(name, recipe, copied, index).reused, name
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_rows_do_not_depend_on_part_sizes_or_on_an_interruption(
    finished: str, tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    recipe = recipe_for(model, world, tracking, engine={"batch_rows": 8, "rows_per_part": 100})
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("judge", 1))
    for name in ("responses", "contexts"):
        assert read(layout.round_output(uri, 1, name)) == read(layout.round_output(finished, 1, name))
    ours, theirs = (standing(recipe, u)["1/preferences"].files["part-00000.jsonl"] for u in (uri, finished))
    assert ours == theirs


def test_no_ground_truth_is_read_after_policy_01(
    finished: str, tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    blind = tmp_path / "world"
    shutil.copytree(world, blind)
    rows = [json.loads(line) for line in (blind / "train.jsonl").read_text().splitlines()]
    assert all(row.pop("answer") for row in rows)
    (blind / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = recipe_for(model, blind, tracking)
    uri = str(tmp_path / "run")
    run_loop(recipe, uri)
    ours, theirs = standing(recipe, uri), standing(recipe, finished)
    assert {place: made.digest for place, made in ours.items() if not place.endswith("training")} == {
        place: made.digest for place, made in theirs.items() if not place.endswith("training")
    }


def test_a_changed_recipe_is_refused_naming_keys_and_steps(
    copied: str, model: Path, world: Path, tracking: str
) -> None:
    changed = recipe_for(model, world, tracking, generate={"max_new_tokens": 5, "temperature": 0.9})
    with pytest.raises(StaleOutput, match=r"generate\.temperature: 0\.7 -> 0\.9 \(finished: generate\)"):
        again("preflight", changed, copied, 0)
    with pytest.raises(StaleOutput, match="the recipe keys of step generate differ"):
        again("generate", changed, copied, 1)


def test_a_run_is_extended_without_repeating_what_stands(copied: str, model: Path, world: Path, tracking: str) -> None:
    longer = recipe_for(model, world, tracking, iterations=4)
    done = standing(longer, copied)
    run_loop(longer, copied)
    after = standing(longer, copied)
    assert set(after) - set(done) == {"policy-04", "3/responses", "3/contexts", "3/preferences", "3/training"}
    assert all(after[place] == made for place, made in done.items())


def test_finished_work_of_other_code_is_refused_when_that_is_asked_for(
    copied: str, model: Path, world: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(model, world, tracking)
    file = Path(layout.round_output(copied, 1, "responses")) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"code_version": "0.0+other"}))
    assert again("generate", recipe, copied, 1).reused
    monkeypatch.setenv(outputs.STRICT_CODE, "1")
    with pytest.raises(StaleOutput, match=r"was made by code 0\.0\+other"):
        again("generate", recipe, copied, 1)


def test_an_altered_file_is_found_and_named(copied: str, model: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(model, world, tracking)
    file = Path(layout.round_output(copied, 1, "responses")) / "part-00000.jsonl"
    file.write_text(file.read_text().replace("q", "x", 1) if "q" in file.read_text() else "x" + file.read_text()[1:])
    with pytest.raises(CorruptOutput, match=r"part-00000\.jsonl was altered"):
        again("generate", recipe, copied, 1)


def test_a_missing_input_says_which_step_makes_it(tmp_path: Path, model: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(model, world, tracking)
    with pytest.raises(DataError, match=r"policy-00 is not complete; `isr-dpo preflight` makes it"):
        inputs_of("prepare", recipe, str(tmp_path), 0)


def test_preflight_reports_all_findings_at_once(tmp_path: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(tmp_path / "nothing", tmp_path / "nowhere", tracking, prompts="absent")
    with pytest.raises(RecipeError) as caught:
        again("preflight", recipe, str(tmp_path / "run"), 0)
    message = str(caught.value)
    assert "prompts: 'absent'" in message
    assert "no config.json" in message
    assert "data.train" in message
    assert "data.sets.dev" in message


def test_a_guard_stops_the_run_and_the_failure_is_recorded(
    copied: str, model: Path, world: Path, tracking: str
) -> None:
    recipe = recipe_for(model, world, tracking, guards={"max_chosen_growth": 1.0001})
    with pytest.raises(GuardTripped, match=r"guards\.max_chosen_growth"):
        run_step("judge", recipe, inputs_of("judge", recipe, copied, 2), copied, 2, run_id="attempt-1")
    failed = json.loads(Path(layout.failure(copied)).read_text())
    assert (failed["step"], failed["index"], failed["retry"], failed["exit_code"]) == ("judge", 2, False, 6)
    shutil.rmtree(layout.round_output(copied, 2, "preferences"))
    with pytest.raises(Exception, match=r"guards\.max_chosen_growth"):  # a retry of the attempt is not tried
        run_step("judge", recipe, inputs_of("judge", recipe, copied, 2), copied, 2, run_id="attempt-1")
    assert not Path(layout.round_output(copied, 2, "preferences")).exists()


def test_a_step_run_again_by_hand_is_tried_again_after_a_permanent_failure(
    copied: str, model: Path, world: Path, tracking: str
) -> None:
    with pytest.raises(GuardTripped):
        again("judge", recipe_for(model, world, tracking, guards={"max_chosen_growth": 1.0001}), copied, 2)
    assert again("judge", recipe_for(model, world, tracking), copied, 2).reused
    assert not Path(layout.failure(copied)).exists()


def test_policy_01_is_the_start_where_there_are_no_seed_preferences(
    tmp_path: Path, model: Path, world: Path, tracking: str
) -> None:
    plain = tmp_path / "world"
    shutil.copytree(world, plain)
    rows = [json.loads(line) for line in (plain / "train.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if "chosen" not in k and "rejected" not in k} for row in rows]
    (plain / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    recipe = recipe_for(model, plain, tracking)
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("train", 0))
    first, start = manifest.find(layout.policy(uri, 1)), manifest.find(layout.policy(uri, 0))
    assert first is not None
    assert first == start


@pytest.mark.parametrize("context", ["none", "fixed", "renew", "shuffled"])
def test_context_designs(context: str, finished: str, tmp_path: Path, model: Path, world: Path, tracking: str) -> None:
    recipe = recipe_for(model, world, tracking, retrospect={"context": context, "max_new_tokens": 6})
    uri = str(tmp_path / "run")
    run_loop(recipe, uri, until=("judge", 2))
    made = standing(recipe, uri)
    judged = [json.loads(x) for x in read(layout.round_output(uri, 2, "preferences")).splitlines() if b"outcome" in x]
    if context == "none":
        assert "1/contexts" not in made
        assert all("context" not in row for row in judged)
        return
    source = layout.round_output(uri, 1 if context == "fixed" else 2, "contexts")
    contexts = {row["video"]: row["context"] for row in map(json.loads, read(source).splitlines())}
    own = [row["context"] == contexts[row["video"]] for row in judged]
    assert ("2/contexts" in made) == (context != "fixed")
    if context == "shuffled":
        assert sorted({r["context"] for r in judged}) <= sorted(set(contexts.values()))
        assert not all(own)
    else:
        assert all(own)
    if context == "renew":
        assert b"previous" not in read(source)


def test_an_mlflow_or_a_store_that_is_away_is_found_before_anything_is_spent(
    tmp_path: Path, model: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    for name, value in {
        "AWS_ENDPOINT_URL": closed,
        "AWS_ACCESS_KEY_ID": secrets.token_hex(8),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
        "AWS_MAX_ATTEMPTS": "2",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    recipe = recipe_for(model, world, closed)
    with pytest.raises(RecipeError, match="preflight") as caught:
        preflight.check(recipe, "s3://bucket/run")
    message = str(caught.value)
    assert message.count(closed) >= 2
    assert "MLflow" in message
    assert "s3://bucket" in message


class AwayGrader:
    name, model = "away", "gpt"

    def grade(self, protocol: object, tasks: object, progress: object) -> list[object]:
        raise OutsideError("the grader is away")


def test_a_grader_that_stays_away_leaves_the_evaluation_pending_and_the_loop_running(
    copied: str, model: Path, world: Path, tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(layout.evaluation(copied, 3))
    asked = {"full_at": [1], "grader": "openai"}
    with monkeypatch.context() as patch:
        patch.setattr("isr_dpo.steps.evaluate.open_grader", lambda *_, **__: AwayGrader())
        recipe = recipe_for(model, world, tracking, evaluate=asked)
        result = again("evaluate", recipe, copied, 3)
        assert result.metrics == {"pending_sets": 1}
        assert manifest.find(f"{layout.evaluation(copied, 3)}/caption-dev") is None
        again("register", recipe, copied, 3)
        again("report", recipe, copied, 3)
        with pytest.raises(OutsideError, match="the grader is away"):
            again("evaluate", recipe_for(model, world, tracking, evaluate=asked | {"required": True}), copied, 3)
    completed = again("evaluate", recipe_for(model, world, tracking), copied, 3)
    assert completed.metrics["pending_sets"] == 0
    assert "dev/accuracy" in completed.metrics
