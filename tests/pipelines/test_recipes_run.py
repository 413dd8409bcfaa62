"""The packaged baselines, run: prediction files and a folder, one page over both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from isr_dpo import cli, layout
from isr_dpo.config import parse
from isr_dpo.data.world import draw
from pipelines import recipe_files
from tests.loop import run_loop

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what baselines.yaml names in my-bucket, of one system's answers, and the recipe for it."""
    folder = tmp_path_factory.mktemp("bucket")
    draw(folder / "data/test", seed=0, train=2, dev=2, test=4, seed_preferences=0)
    rows = (folder / "data/test/test.qa.jsonl").read_text()
    recipe = recipe_files.load("baselines")
    answers = [_answer(json.loads(line), right=number % 2 == 0) for number, line in enumerate(rows.splitlines())]
    (folder / "predictions/pllava").mkdir(parents=True)
    for name, uri in recipe.data.sets.items():
        (folder / "data/test" / Path(uri).name).write_text(rows)
        (folder / f"predictions/pllava/{name}.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    text = (recipe_files.FOLDER / "baselines.yaml").read_text().replace("s3://my-bucket", str(folder))
    (folder / "baselines.yaml").write_text(text.replace(f"videos: {folder}/data/videos", "workers: 1"))
    return folder


def _answer(row: dict[str, object], *, right: bool) -> dict[str, object]:
    """As LLaVA-Hound's runners of other systems write it: `video_path` instead of `modal_path`."""
    human, gpt = (turn["value"] for turn in row["conversations"])  # type: ignore[attr-defined]
    status = {"status": "success", "message": gpt if right else "nothing at all"}
    return {"id": row["id"], "video_path": row["video"], "query": human, "answer": gpt, "model_prediction": status}


def test_a_baseline_of_prediction_files_is_evaluated_by_one_command(bucket: Path) -> None:
    command = ["evaluate", "baselines.yaml", "--variant", "pllava", "--run-uri", "runs/pllava"]
    here = ["--set", "evaluate.grader=rules", "--set", f"tracking.uri=sqlite:///{bucket}/mlflow.db"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "pipelines", *command, *here],
        cwd=bucket,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "baselines-pllava" in done.stdout
    stored = json.loads((bucket / "runs/pllava/run.json").read_text())["recipe"]
    assert stored["name"] == "baselines-pllava"
    for name, protocol in (("actnet", "caption"), ("msvd-official", "official")):
        graded = bucket / layout.graded("runs/pllava", 0, protocol, name) / "metrics.json"
        assert json.loads(graded.read_text())["accuracy"] == 0.5


def test_a_baseline_from_a_folder_stands_beside_it_on_one_page(bucket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bucket)
    here = ["engine.kind=hf", "engine.workers=1", "prompts=world", "model.device=cpu", "model.dtype=float32"]
    sets = f"data.sets={{actnet: {bucket}/data/test/actnet.qa.jsonl}}"
    changes = [*here, sets, "model.start=builtin:world", "evaluate.grader=rules", "answer.max_new_tokens=8"]
    changes.append(f"tracking.uri=sqlite:///{bucket}/mlflow.db")
    recipe = recipe_files.load("./baselines.yaml", variant="isr-dpo-9", changes=changes)
    assert parse(recipe.canonical()).name == "baselines-isr-dpo-9"
    run_loop(recipe, "runs/isr-dpo-9")
    assert cli.main(["report", "runs/pllava", "runs/isr-dpo-9", "--out", "page.html"]) == 0
    page = (bucket / "page.html").read_text()
    assert "baselines-pllava" in page
    assert "baselines-isr-dpo-9" in page
