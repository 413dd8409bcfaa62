"""run_step and run_share leave a record of the time that work took."""

from __future__ import annotations

from pathlib import Path

import pytest

from isr_dpo import times
from isr_dpo.config import Recipe
from isr_dpo.errors import ModelError
from isr_dpo.manifest import Origin
from isr_dpo.outputs import Output, begin
from isr_dpo.parts import Share
from isr_dpo.steps import STEPS, StepResult, run_step
from isr_dpo.steps.execute import SHARED, run_share
from isr_dpo.stores import join
from tests.loop import recipe_for


@pytest.fixture
def recipe(model: Path, world: Path, tracking: str) -> Recipe:
    return recipe_for(model, world, tracking)


def result(run: str, *, reused: bool) -> StepResult:
    out = begin(join(run, "made"), Origin("test", "test", {}, "", ""))
    made = out.seal(rows=7, deterministic=True) if isinstance(out, Output) else out
    return StepResult(made, {"rows": 7.0}, reused=reused)


def test_a_step_that_works_is_timed_and_one_that_stands_is_not(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path / "run")
    monkeypatch.setitem(STEPS, "judge", lambda *_: result(run, reused=False))
    monkeypatch.setitem(STEPS, "train", lambda *_: result(run, reused=True))
    for name in ("judge", "train"):
        run_step(name, recipe, {}, run, 1)
    (only,) = times.read(run)
    assert (only.step, only.index, only.rows, only.done) == ("judge", 1, 7, True)


def test_a_failure_is_timed_under_its_name(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> StepResult:
        raise ModelError("no memory")

    run = str(tmp_path / "run")
    monkeypatch.setitem(STEPS, "judge", fails)
    monkeypatch.setitem(SHARED, "judge", fails)
    with pytest.raises(ModelError):
        run_step("judge", recipe, {}, run, 1)
    with pytest.raises(ModelError):
        run_share("judge", recipe, {}, run, 1, Share(2, 3))
    assert [(time.share, time.attempts[0].ended) for time in times.read(run)] == [(0, "ModelError"), (2, "ModelError")]
