"""Several pods on one output: each does its share of the parts, and the step that follows completes it."""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest

from isr_dpo import engines, layout, manifest, outputs, start
from isr_dpo.config import Recipe
from isr_dpo.errors import IsrDpoError, ModelError
from isr_dpo.parts import Share
from isr_dpo.steps import STEPS, StepResult
from isr_dpo.steps.execute import run_share
from isr_dpo.steps.inputs import inputs_of
from isr_dpo.stores import join, open_store, read_bytes
from isr_dpo.stores.lock import owner
from tests.loop import recipe_for

PODS = 3
RUN_ID = "one pipeline run"
Begun = Callable[[str], str]
local = pytest.mark.parametrize("run_uri", ["local"], indirect=True)


@pytest.fixture
def pods(run_uri: str) -> Iterator[Executor]:
    """A process a pod, with the store's settings in its environment; a process goes on to the next task."""
    with ProcessPoolExecutor(PODS, mp_context=multiprocessing.get_context("spawn")) as processes:
        yield processes


@pytest.fixture
def recipe(model: Path, world: Path) -> Recipe:
    return recipe_for(model, world, "unused", engine={"batch_rows": 8, "rows_per_part": 2, "pods": PODS})


@pytest.fixture
def begun(run_uri: str, recipe: Recipe) -> Begun:
    """Makes a run whose policy-01 is the model itself."""

    def make(name: str) -> str:
        uri = join(run_uri, name)
        for index in (0, 1):
            outputs.alias(layout.policy(uri, index), start.start_manifest(recipe))
        do("prepare", recipe, uri, 0)
        return uri

    return make


def do(name: str, recipe: Recipe, uri: str, index: int = 1) -> StepResult:
    return STEPS[name](recipe, inputs_of(name, recipe, uri, index), uri, index)


def share(name: str, recipe: Recipe, uri: str, number: int) -> StepResult:
    """As a pod does it, among the other pods of the run."""
    with owner(uri, RUN_ID):
        inputs = inputs_of(name, recipe, uri, 1)
        return run_share(name, recipe, inputs, uri, 1, Share(number, PODS), run_id=RUN_ID)


def files(uri: str) -> dict[str, bytes]:
    """All but manifests, which name the run's place."""
    names = [name for name in open_store(uri).list(uri) if name.startswith(("round-01/", "answers/"))]
    return {name: read_bytes(join(uri, name)) for name in names if not name.endswith(manifest.MANIFEST)}


@pytest.mark.parametrize("run_uri", ["moto"], indirect=True)
def test_pods_side_by_side_make_what_one_makes_and_the_last_task_opens_no_engine(
    begun: Begun, recipe: Recipe, pods: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared = begun("alone"), begun("shared")
    opened: list[str] = []
    real = engines.open_engine

    def counted(*arguments):  # type: ignore[no-untyped-def]
        opened.append(name)
        return real(*arguments)

    monkeypatch.setattr(engines, "open_engine", counted)
    for name in ("generate", "retrospect", "judge", "answer"):
        do(name, recipe, alone)
        results = list(pods.map(functools.partial(share, name, recipe, shared), (1, 2, 3)))
        assert all(result.manifest.deterministic for result in results)
        before = len(opened)
        whole = do(name, recipe, shared)
        assert not whole.reused  # no pod has sealed it
        assert len(opened) == before
        assert sum(result.manifest.rows for result in results) == whole.manifest.rows
    assert files(shared) == files(alone)
    for stage in ("responses", "contexts", "preferences"):
        ours, theirs = (manifest.find(layout.round_output(uri, 1, stage)) for uri in (shared, alone))
        assert ours is not None
        assert theirs is not None
        assert (ours.digest, ours.deterministic) == (theirs.digest, theirs.deterministic)
    assert not open_store(shared).list(layout.tracked_marks(shared))


@local
def test_pods_that_find_the_unfinished_work_of_another_recipe_discard_it_together(
    begun: Begun, recipe: Recipe, pods: Executor
) -> None:
    alone, shared = begun("alone"), begun("shared")
    other = recipe.model_copy(update={"seed": 7})
    share("generate", other, shared, 2)
    do("generate", recipe, alone)
    list(pods.map(functools.partial(share, "generate", recipe, shared), (1, 2, 3)))
    do("generate", recipe, shared)
    assert files(shared) == files(alone)


@local
def test_what_a_pod_has_left_the_last_task_does(begun: Begun, recipe: Recipe) -> None:
    alone, shared = begun("alone"), begun("shared")
    do("generate", recipe, alone)
    share("generate", recipe, shared, 2)
    assert do("generate", recipe, shared).manifest.rows == 12
    assert files(shared) == files(alone)


@local
def test_a_share_of_what_is_complete_is_not_done_again(begun: Begun, recipe: Recipe) -> None:
    uri = begun("run")
    whole = do("generate", recipe, uri).manifest
    again = share("generate", recipe, uri, 1)
    assert again.reused
    assert again.manifest == whole


@local
def test_a_pod_that_fails_for_good_says_so_once_for_all_of_them(
    begun: Begun, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = begun("run")

    def refuse(*_: object) -> None:
        raise ModelError("half a policy")

    monkeypatch.setattr(engines, "open_engine", refuse)
    monkeypatch.setattr("isr_dpo.tracking.step_run", lambda *_, **__: pytest.MonkeyPatch.context())
    with pytest.raises(ModelError, match="half a policy"):
        share("generate", recipe, uri, 1)
    assert json.loads(Path(layout.failure(uri)).read_text())["retry"] is False
    monkeypatch.setattr(engines, "open_engine", lambda *_: pytest.fail("opened all the same"))
    with pytest.raises(IsrDpoError, match="half a policy"):
        share("generate", recipe, uri, 2)
