import json
from pathlib import Path

import pytest
import yaml

from isr_dpo import config, layout
from isr_dpo.config import Recipe
from isr_dpo.errors import CorruptOutput
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from pipelines.standing import expected, is_complete, mark_complete


def recipe(**keys: object) -> Recipe:
    tree = {
        "name": "tiny",
        "iterations": 3,
        "model": {"start": "builtin:world", "registered_name": "tiny"},
        "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl", "test": "test.jsonl"}},
        "evaluate": {"full_at": [1, 3]},
        **keys,
    }
    return config.parse(yaml.safe_dump(tree))


def finished(run: Path, plan: Recipe, *, prompts_digest: str = "") -> str:
    for uri in expected(str(run), plan):
        output = begin(uri, Origin("kind", "step", {}, "", prompts_digest))
        assert isinstance(output, Output)
        output.write("rows.jsonl", json.dumps({"uri": uri}).encode())
        output.seal(rows=1, deterministic=True)
    page = Path(layout.report(str(run)))
    page.parent.mkdir()
    page.write_text("page")
    mark_complete(str(run), plan)
    return str(run)


BENCHMARK = recipe(iterations=0)
IMPORTED = recipe(iterations=0, model={}, answer={"predictions": {"dev": "d.jsonl", "test": "t.jsonl"}})


@pytest.mark.parametrize("plan", [BENCHMARK, IMPORTED])
def test_a_finished_benchmark_is_complete_and_each_of_its_outputs_counts(plan: Recipe, tmp_path: Path) -> None:
    assert is_complete(finished(tmp_path / "whole", plan), plan)
    for number, uri in enumerate(names(plan)):
        run = tmp_path / str(number)
        finished(run, plan)
        (run / uri.removeprefix("run/") / "manifest.json").unlink()
        assert not is_complete(str(run), plan), uri


def test_a_benchmark_makes_answers_and_grades_of_all_sets_and_decodes_no_video_for_prediction_files() -> None:
    graded = [f"run/evaluation/policy-00/caption-{name}" for name in ("dev", "test")]
    answered = [f"run/answers/policy-00/{name}" for name in ("dev", "test")]
    assert sorted(names(IMPORTED)) == sorted(["run/dataset", "run/policy-00", *answered, *graded])
    assert set(names(BENCHMARK)) - set(names(IMPORTED)) == {"run/frames"}


def names(plan: Recipe) -> list[str]:
    return list(expected("run", plan))


def test_a_finished_run_is_complete(tmp_path: Path) -> None:
    assert is_complete(finished(tmp_path, recipe()), recipe())


def test_an_empty_folder_is_not(tmp_path: Path) -> None:
    assert not is_complete(str(tmp_path), recipe())


def test_every_output_counts(tmp_path: Path) -> None:
    for number, uri in enumerate(names(recipe())):
        run = tmp_path / str(number)
        finished(run, recipe())
        (run / uri.removeprefix("run/") / "manifest.json").unlink()
        assert not is_complete(str(run), recipe()), uri


@pytest.mark.parametrize("keys", [{"iterations": 4}, {"seed": 1}])
def test_another_recipe_is_not_complete(keys: dict[str, int], tmp_path: Path) -> None:
    assert not is_complete(finished(tmp_path, recipe()), recipe(**keys))


def test_other_prompts_are_not_complete(tmp_path: Path) -> None:
    assert not is_complete(finished(tmp_path, recipe(), prompts_digest="of earlier templates"), recipe())


def test_an_altered_file_is_named(tmp_path: Path) -> None:
    run = finished(tmp_path, recipe())
    (tmp_path / "round-02/responses/rows.jsonl").write_text("other")
    with pytest.raises(CorruptOutput, match=r"round-02/responses/rows\.jsonl"):
        is_complete(run, recipe())


def test_contexts_are_expected_where_the_design_makes_them() -> None:
    def rounds(design: str) -> list[str]:
        return [n.split("/")[1] for n in names(recipe(retrospect={"context": design})) if n.endswith("contexts")]

    assert rounds("retrospective") == ["round-01", "round-02"]
    assert rounds("fixed") == ["round-01"]
    assert rounds("none") == []


def test_all_sets_are_expected_where_the_recipe_evaluates_in_full() -> None:
    found = names(recipe())
    assert "run/evaluation/policy-01/caption-test" in found
    assert "run/evaluation/policy-02/caption-test" not in found
    assert "run/evaluation/policy-02/caption-dev" in found
