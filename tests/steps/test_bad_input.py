"""Rows that cannot be used are counted under their reason, make no preference, and change nothing for the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from isr_dpo import layout, manifest
from isr_dpo.errors import RecipeError
from isr_dpo.records import Judged, Prediction, Preference, Responses
from isr_dpo.steps.common import metrics_of, rows_of
from tests.loop import recipe_for, run_loop

LONG = "what " * 600


@pytest.fixture
def spoiled(world: Path, tmp_path: Path) -> Path:
    """The world with a question that is too long in each file, and a row whose video is no video."""
    folder = Path(shutil.copytree(world, tmp_path / "world"))
    for name, row_id in (("train.jsonl", "q-long"), ("dev.qa.jsonl", "d-long")):
        lines = (folder / name).read_text().splitlines()
        row = json.loads(lines[0])
        row["id"] = row_id
        if "conversations" in row:
            row["conversations"][0]["value"] = LONG
        else:
            row = {key: row[key] for key in ("id", "video")} | {"prompt": LONG}
        lines.insert(1, json.dumps(row))
        (folder / name).write_text("\n".join(lines) + "\n")
    video = json.loads((folder / "train.jsonl").read_text().splitlines()[0])["video"]
    (clip,) = folder.rglob(f"{video}*")
    (clip.parent / f"broken{clip.suffix}").write_bytes(b"no video")
    with (folder / "train.jsonl").open("a") as train:
        train.write(json.dumps({"id": "q-broken", "video": "broken", "prompt": "what ?"}) + "\n")
    return folder


def made(uri: str) -> manifest.Manifest:
    found = manifest.find(uri)
    assert found is not None
    return found


def test_bad_rows_are_counted_and_leave_the_others_as_they_are(
    spoiled: Path, world: Path, model: Path, tracking: str, tmp_path: Path
) -> None:
    def run(name: str, source: Path) -> str:
        data = {
            "train": str(source / "train.jsonl"),
            "sets": {"dev": str(source / "dev.qa.jsonl")},
            "max_unreadable_fraction": 0.5,
        }
        uri = str(tmp_path / name)
        run_loop(recipe_for(model, source, tracking, data=data), uri, until=("judge", 1))
        return uri

    bad, good = run("bad", spoiled), run("good", world)
    assert metrics_of(made(layout.dataset(bad)))["unreadable_rows"] == 1
    responses = {row.id: row for row in rows_of(made(layout.round_output(bad, 1, "responses")), Responses)}
    assert (responses["q-long"].responses, responses["q-long"].finish) == (("", ""), ("too_long", "too_long"))
    assert metrics_of(made(layout.round_output(bad, 1, "responses")))["too_long"] == 1
    preferences = made(layout.round_output(bad, 1, "preferences"))
    judged = {row.id: row for row in rows_of(preferences, Judged, "judged-")}
    assert judged.pop("q-long").outcome == "too_long"
    assert metrics_of(preferences)["dropped_too_long"] == 1
    assert not {"q-long", "q-broken"} & {row.id for row in rows_of(preferences, Preference)}
    undisturbed = made(layout.round_output(good, 1, "preferences"))
    assert judged == {row.id: row for row in rows_of(undisturbed, Judged, "judged-")}
    answers = {row.id: row for row in rows_of(made(f"{layout.answers(bad, 1)}/dev"), Prediction)}
    assert answers["d-long"].model_prediction.status == "failed"
    assert metrics_of(made(f"{layout.answers(bad, 1)}/dev"))["not_asked"] == 1
    graded = metrics_of(made(f"{layout.evaluation(bad, 1)}/caption-dev"))
    assert graded["unscored"] == metrics_of(made(f"{layout.evaluation(good, 1)}/caption-dev"))["unscored"] + 1


def test_a_policy_that_was_not_copied_to_its_end_is_refused_at_once(
    world: Path, model: Path, tracking: str, tmp_path: Path
) -> None:
    start = Path(shutil.copytree(model, tmp_path / "start"))
    (start / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(RecipeError, match=r"model\.start: .*not written or copied to its end"):
        run_loop(recipe_for(start, world, tracking), str(tmp_path / "run"), until=("preflight", 0))
