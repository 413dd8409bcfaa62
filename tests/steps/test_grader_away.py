"""A grader that stays away, over real HTTP and through the real steps: training goes on, nothing wrong is scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from isr_dpo import layout, manifest
from isr_dpo.config import Recipe
from isr_dpo.records import Grade
from isr_dpo.steps import STEPS
from isr_dpo.steps.common import rows_of
from isr_dpo.steps.inputs import inputs_of
from tests.evaluate.grading import quick
from tests.loop import recipe_for, run_loop
from tests.servers.grader_server import Answer, grader_server


def test_training_goes_on_and_the_evaluations_are_completed_later(
    world: Path, model: Path, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)
    away = True
    run = str(tmp_path / "run")

    def answer(prompt: str, n: int) -> Answer:
        return Answer(status=503) if away else Answer(text="Explanation: so\nScore: 4")

    def recipe(url: str, **changes: Any) -> Recipe:
        asked = {"grader": "openai", "model": "grader-1", "base_url": url, "full_at": [1], **changes}
        return recipe_for(model, world, tracking, iterations=2, evaluate=asked)

    with grader_server(answer) as server:
        run_loop(recipe(server.url), run)
        assert manifest.find(layout.policy(run, 2)) is not None, "both policies are trained"
        assert len(server.requests) <= 2 * 6, "a few attempts each time, not one for each answer"
        places = [layout.graded(run, policy, "caption", "dev") for policy in (1, 2)]
        assert [manifest.find(place) for place in places] == [None, None]

        away = False
        for policy in (1, 2):
            asked = recipe(server.url, max_requests=100)  # a ceiling leaves finished work standing
            result = STEPS["evaluate"](asked, inputs_of("evaluate", asked, run, policy), run, policy)
            assert result.metrics["pending_sets"] == 0
    for place in places:
        made = manifest.find(place)
        assert made is not None
        assert {(grade.status, grade.score) for grade in rows_of(made, Grade)} == {("scored", 4.0)}
