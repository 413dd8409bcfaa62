"""A finished run after its clearing: complete, nothing of it is made again, and what needs lost weights says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isr_dpo import gc, layout, manifest
from isr_dpo.errors import DataError
from isr_dpo.gc.kept import Registry
from isr_dpo.gc.survey import job_key
from isr_dpo.steps import run_step
from isr_dpo.steps.inputs import inputs_of
from pipelines.standing import is_complete, mark_complete
from tests.loop import recipe_for, run_loop, standing, step_names

NOBODY = Registry({}, frozenset())


def test_a_cleared_run_is_complete_and_is_not_run_again(
    model: Path, world: Path, tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = recipe_for(model, world, tracking), str(tmp_path / "run")
    folders: list[str] = []
    rmtree = shutil.rmtree
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, *a, **k: (folders.append(Path(path).name), rmtree(path, *a, **k))
    )
    run_loop(recipe, run)
    mark_complete(run, recipe)
    assert is_complete(run, recipe)
    trained = [found for index in range(3) if (found := manifest.find(layout.policy(run, index + 1))) is not None]
    assert [job_key(run, index, made) in folders for index, made in enumerate(trained)] == [True] * 3

    before = standing(recipe, run)
    made = gc.collect(run, registry=NOBODY, run_id="gc-1")
    assert [removal.uri for removal in made.removals] == [layout.policy(run, 2)]
    assert not Path(layout.policy(run, 2), "model.safetensors").exists()
    assert is_complete(run, recipe)
    assert standing(recipe, run) == before
    for name, index in step_names(recipe):
        again = run_step(name, recipe, inputs_of(name, recipe, run, index), run, index)
        assert again.reused or name in ("register", "report"), f"{name} {index}"

    shutil.rmtree(layout.round_output(run, 2, "responses"))
    with pytest.raises(DataError, match="policy-02: its weights were removed by `isr-dpo gc`"):
        run_step("generate", recipe, inputs_of("generate", recipe, run, 2), run, 2)
