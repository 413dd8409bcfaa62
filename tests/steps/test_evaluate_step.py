"""evaluate: two protocols by the set, and a grader that stays away costs the run nothing. A benchmark of prediction
files has all of it and needs no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.config import Engine, Recipe
from isr_dpo.errors import BudgetSpent, KeyRefused, OutsideError, StaleOutput
from isr_dpo.evaluate import Progress, Reply, open_protocol
from isr_dpo.evaluate.caption import format_reply
from isr_dpo.evaluate.official import format_reply as official_reply
from isr_dpo.evaluate.protocol import GradingProtocol, Task
from isr_dpo.records import Grade
from isr_dpo.steps import assess, run_step
from isr_dpo.steps.common import StepResult, metrics_of, rows_of
from isr_dpo.steps.inputs import inputs_of

SETS = {"msvd": "msvd.qa.jsonl", "msvd-official": "msvd.qa.official.jsonl", "tgif-official": "tgif.qa.official.jsonl"}
ROWS = 3


class Scripted:
    """A grader that gives full marks, and fails as told when it is asked for the nth time."""

    name = "gpt-x"
    model = "gpt-x"

    def __init__(self, failures: dict[int, Exception] | None = None, text: str | None = None) -> None:
        self.asked: list[str] = []
        self._failures, self._text = failures or {}, text

    def grade(
        self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
    ) -> list[Reply]:
        self.asked.append(protocol.name)
        failure = self._failures.get(len(self.asked))
        if failure is not None:
            raise failure
        progress(len(tasks))
        full = format_reply("ok", 5) if protocol.name == "caption" else official_reply("yes", 5)
        return [Reply(self._text or full, model="gpt-x-2031") for _ in tasks]


@pytest.fixture
def recipe(tmp_path: Path, tracking: str) -> Callable[..., Recipe]:
    """A benchmark of a system's prediction files for three sets of three questions."""
    for name, file in SETS.items():
        questions = [
            {"id": i, "video": f"v{i}", "conversations": turns(i)}
            | ({"caption": "red ball"} if "official" not in name else {})
            for i in range(ROWS)
        ]
        write(tmp_path / file, questions)
        write(tmp_path / f"{name}.predictions.jsonl", [prediction(i) for i in range(ROWS)])

    def make(**evaluate: Any) -> Recipe:
        tree = {
            "name": "others",
            "iterations": 0,
            "data": {"sets": {name: str(tmp_path / file) for name, file in SETS.items()}},
            "answer": {"predictions": {name: str(tmp_path / f"{name}.predictions.jsonl") for name in SETS}},
            "tracking": {"uri": tracking},
            "evaluate": {"grader": "openai", "model": "gpt-x"} | evaluate,
        }
        return Recipe.model_validate(tree)

    return make


def turns(i: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"<video>\nwhat {i} ?"}, {"from": "gpt", "value": "it is red"}]


def prediction(i: int) -> dict[str, Any]:
    outcome = {"status": "success", "message": "red"}
    return {"id": i, "modal_path": f"v{i}", "query": f"what {i} ?", "answer": "it is red", "model_prediction": outcome}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run_uri(tmp_path: Path, recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> str:
    """A run that is prepared and answered for."""
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    uri = str(tmp_path / "run")
    made = recipe(grader="rules")
    for step in ("preflight", "prepare", "answer"):
        run_step(step, made, inputs_of(step, made, uri, 0), uri, 0)
    return uri


def evaluated(recipe: Recipe, uri: str, grader: Scripted, monkeypatch: pytest.MonkeyPatch) -> StepResult:
    with monkeypatch.context() as patch:
        patch.setattr("isr_dpo.steps.evaluate.open_grader", lambda settings, *, run_uri: grader)
        return run_step("evaluate", recipe, inputs_of("evaluate", recipe, uri, 0), uri, 0)


def standing(uri: str) -> set[str]:
    names = [layout.graded_name("official" if "official" in name else "caption", name) for name in SETS]
    return {name for name in names if manifest.find(f"{layout.evaluation(uri, 0)}/{name}") is not None}


ALL = {"caption-msvd", "official-msvd-official", "official-tgif-official"}


def test_each_set_is_graded_by_its_protocol(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader = Scripted()
    result = evaluated(recipe(), run_uri, grader, monkeypatch)
    assert standing(run_uri) == ALL
    assert sorted(grader.asked) == ["caption", "official", "official"]
    assert result.metrics["pending_sets"] == 0
    assert {name: result.metrics[f"{name}/accuracy"] for name in SETS} == dict.fromkeys(SETS, 1.0)
    again = evaluated(recipe(), run_uri, Scripted({1: AssertionError("asked again")}), monkeypatch)
    assert again.reused


def test_a_set_of_another_file_name_is_official_where_the_recipe_says_so(recipe: Callable[..., Recipe]) -> None:
    assert recipe(protocols={"msvd": "official", "tgif-official": "caption"}).protocol("msvd") == "official"
    assert recipe(protocols={"tgif-official": "caption"}).protocol("tgif-official") == "caption"
    with pytest.raises(ValueError, match=r"evaluate\.protocols names"):
        recipe(protocols={"other": "official"})


def test_a_grader_that_is_away_leaves_its_set_pending_and_a_later_run_grades_that_alone(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "isr_dpo"):
        result = evaluated(recipe(), run_uri, Scripted({2: OutsideError("away")}), monkeypatch)
    assert result.metrics["pending_sets"] == 1
    assert len(standing(run_uri)) == 2
    assert "PENDING" in caplog.text
    assert "isr-dpo evaluate" in caplog.text
    later = Scripted()
    assert evaluated(recipe(), run_uri, later, monkeypatch).metrics["pending_sets"] == 0
    assert later.asked == ["official"]
    assert standing(run_uri) == ALL


def test_a_spent_budget_is_pending_while_other_sets_may_stand_in_the_ledger(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grader = Scripted({1: BudgetSpent("nothing left")})
    assert evaluated(recipe(), run_uri, grader, monkeypatch).metrics["pending_sets"] == 1
    assert len(grader.asked) == 3


def test_a_refused_key_stops_all_sets_at_once(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    grader = Scripted({1: KeyRefused("the key in OPENAI_API_KEY is refused")})
    with caplog.at_level(logging.ERROR, "isr_dpo"):
        result = evaluated(recipe(), run_uri, grader, monkeypatch)
    assert result.metrics == {"pending_sets": 3}
    assert len(grader.asked) == 1
    assert "OPENAI_API_KEY" in caplog.text


def test_the_batches_of_all_sets_are_ordered_before_any_is_waited_for(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float, int]] = []

    class Batches(Scripted):
        def __init__(self, hours: float) -> None:
            super().__init__()
            self._hours = hours

        def grade(
            self, protocol: GradingProtocol[object], tasks: Sequence[Task], progress: Progress = lambda _: None
        ) -> list[Reply]:
            asked.append((protocol.name, self._hours, len(tasks)))
            if self._hours == 0:
                raise OutsideError("ordered")
            return super().grade(protocol, tasks, progress)

    monkeypatch.setattr(
        "isr_dpo.steps.evaluate.open_grader", lambda settings, *, run_uri: Batches(settings.batch_hours)
    )
    made = recipe(batch=True, required=True).model_copy(update={"engine": Engine(rows_per_part=1)})
    result = run_step("evaluate", made, inputs_of("evaluate", made, run_uri, 0), run_uri, 0)
    assert result.metrics["pending_sets"] == 0
    assert standing(run_uri) == ALL
    sets = [(name, ROWS) for name in ("caption", "official", "official")]
    assert asked == [(name, hours, rows) for hours in (0.0, 24.0) for name, rows in sets]


@pytest.mark.parametrize("error", [OutsideError("away"), BudgetSpent("spent"), KeyRefused("refused")])
def test_where_grades_are_required_the_run_fails(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch, error: OutsideError
) -> None:
    with pytest.raises(type(error), match=str(error)):
        evaluated(recipe(required=True), run_uri, Scripted({1: error}), monkeypatch)


def test_the_recipes_reading_makes_the_headline_and_another_one_is_refused_on_finished_grades(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prose = Scripted(text="Yes! I would say 4.")
    evaluated(recipe(reading="compat"), run_uri, prose, monkeypatch)
    made = manifest.find(layout.graded(run_uri, 0, "caption", "msvd"))
    assert made is not None
    figures = metrics_of(made)
    assert (figures["accuracy"], figures["score"], figures["strict_scored"]) == (1.0, 4.0, 0.0)
    assert {grade.reply for grade in rows_of(made, Grade)} == {"Yes! I would say 4."}
    with pytest.raises(StaleOutput, match=r"evaluate\.reading|recipe keys"):
        evaluated(recipe(), run_uri, Scripted(), monkeypatch)


def test_other_prompts_of_a_protocol_make_other_grades(
    recipe: Callable[..., Recipe], run_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(recipe(), run_uri, Scripted(), monkeypatch)
    monkeypatch.setattr("isr_dpo.steps.evaluate.grading_digest", lambda recipe, name: "another")
    with pytest.raises(StaleOutput, match="prompts"):
        evaluated(recipe(), run_uri, Scripted(), monkeypatch)


@pytest.mark.parametrize(
    ("name", "protocol", "changes", "said"),
    [
        ("msvd", "caption", {}, "gpt-x, prompt {caption:.8}"),
        ("msvd-official", "official", {}, "gpt-x, official protocol, prompt {official:.8}"),
        ("msvd", "caption", {"reading": "compat"}, "gpt-x, prompt {caption:.8}, compat reading"),
    ],
)
def test_an_accuracy_is_registered_under_all_that_makes_it_comparable(
    recipe: Callable[..., Recipe],
    run_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    protocol: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    evaluated(recipe(**changes), run_uri, Scripted(), monkeypatch)
    digests = {each: open_protocol(each).prompt_digest for each in ("caption", "official")}
    made = manifest.find(layout.graded(run_uri, 0, protocol, name))
    assert assess._grader_name(made) == said.format(**digests)
