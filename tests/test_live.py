from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from isr_dpo import live, mlflow_client, tracking
from isr_dpo.config import Recipe
from isr_dpo.errors import ModelError, OutsideError
from tests.servers.mlflow_server import fresh_database, shared_server

FIGURES = {"reward_accuracy": 0.75, "margin": 0.1, "grad_norm": 2.0, "learning_rate": 5e-7, "pairs_per_second": 9.0}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.05)
    return recipe_at(fresh_database(tmp_path))


def recipe_at(uri: str) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "small",
            "model": {"start": "builtin:world", "registered_name": "m"},
            "data": {"train": "train.jsonl", "sets": {"dev": "dev.jsonl"}},
            "tracking": {"uri": uri, "experiment": "live"},
        }
    )


def line(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "loss": 0.7 - step / 100, **FIGURES, **figures}


def show(recipe: Recipe) -> AbstractContextManager[live.Live]:
    return live.show(recipe, run_uri="runs/a", step="train", index=1)


def complete(recipe: Recipe, lines: list[dict[str, Any]]) -> None:
    """What the end of a step does."""
    with tracking.step_run(recipe, run_uri="runs/a", run_id="r", step="train", index=1, started=1.0) as run:
        run.curve(lines)
        run.log({"loss_last": 0.5})


def train_and_raise(recipe: Recipe, error: BaseException, *, steps: int) -> None:
    with show(recipe) as shown:
        for step in range(1, steps + 1):
            shown.log(line(step))
        raise error


def nested(recipe: Recipe, name: str = "train round-01") -> Any:
    client = mlflow_client.open_client(recipe.tracking.uri)
    experiment = client.get_experiment_by_name("live")
    (found,) = [r for r in client.search_runs([experiment.experiment_id]) if r.info.run_name == name]
    return found


def curve(recipe: Recipe, key: str = "loss") -> list[tuple[int, float]]:
    client = mlflow_client.open_client(recipe.tracking.uri)
    points = client.get_metric_history(nested(recipe).info.run_id, f"train/step/{key}")
    return [(point.step, point.value) for point in points]


def expected(steps: range) -> list[tuple[int, float]]:
    return [(step, 0.7 - step / 100) for step in steps]


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_optimiser_steps_show_while_training_runs(recipe: Recipe) -> None:
    with show(recipe) as shown:
        assert nested(recipe).info.status == "RUNNING", "from the step's start"
        for step in range(1, 4):
            shown.log(line(step))
        until(lambda: curve(recipe) == expected(range(1, 4)))
        shown.log(line(4))
    assert curve(recipe) == expected(range(1, 5)), "the rest comes with the end of the block"
    assert curve(recipe, "grad_norm") == [(step, 2.0) for step in range(1, 5)]
    assert set(nested(recipe).data.metrics) == {f"train/step/{key}" for key in ("loss", *FIGURES)}


def test_the_end_of_the_step_completes_the_same_run(recipe: Recipe) -> None:
    with show(recipe) as shown:
        shown.log(line(1))
    assert nested(recipe).info.status == "RUNNING"
    first = nested(recipe).info.run_id
    complete(recipe, [line(1), line(2)])
    run = nested(recipe)  # exactly one of that name
    assert (run.info.run_id, run.info.status) == (first, "FINISHED")
    assert run.data.metrics["train/loss_last"] == 0.5
    assert curve(recipe) == expected(range(1, 3))
    assert nested(recipe, "small").data.tags["isr_dpo.run_id"] == "r"
    assert "train/step/loss" not in nested(recipe, "small").data.metrics, "the parent has curves over the rounds"


def test_a_resumed_step_goes_on_without_a_second_point(recipe: Recipe) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_and_raise(recipe, KeyboardInterrupt(), steps=5)
    with show(recipe) as shown:  # from a checkpoint after step 2, the log told from its beginning
        for step in range(1, 9):
            shown.log(line(step))
    complete(recipe, [line(step) for step in range(1, 9)])
    assert curve(recipe) == expected(range(1, 9))


class Outage:
    """MLflow that fails as long as `on` is set; the real one in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = threading.Event()
        self.attempts = 0
        for name in ("open_step", "curve"):
            home = live if name == "open_step" else tracking.StepRun
            monkeypatch.setattr(home, name, self._failing(getattr(home, name)))

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.on.is_set():
                self.attempts += 1
                raise OutsideError("MLflow at http://x: away")
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("from_the_start", [True, False])
def test_an_outage_stops_nothing_and_loses_nothing(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, from_the_start: bool
) -> None:
    outage = Outage(monkeypatch)
    if from_the_start:
        outage.on.set()
    with caplog.at_level(logging.WARNING, logger="isr_dpo"), show(recipe) as shown:
        shown.log(line(1))
        outage.on.set()
        seen = outage.attempts
        for step in range(2, 5):
            shown.log(line(step))
        until(lambda: outage.attempts > seen + 2)
        outage.on.clear()
    assert curve(recipe) == expected(range(1, 5))
    warned = [r.getMessage() for r in caplog.records if "training goes on" in r.getMessage()]
    assert warned == ["training goes on, MLflow gets its curves later: MLflow at http://x: away"], "one an outage"


def test_what_an_outage_kept_back_comes_with_the_finished_step(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch)
    with show(recipe) as shown:
        shown.log(line(1))
        until(lambda: len(curve(recipe)) == 1)
        outage.on.set()
        shown.log(line(2))
        shown.log(line(3))
    outage.on.clear()
    assert curve(recipe) == expected(range(1, 2))
    complete(recipe, [line(step) for step in range(1, 4)])
    assert curve(recipe) == expected(range(1, 4))


def test_lines_that_arrived_although_the_answer_did_not_are_not_sent_again(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = tracking.StepRun.curve, iter([True])

    def deaf(self: tracking.StepRun, *args: Any) -> set[int]:
        known = real(self, *args)
        if next(lost, False):
            raise OutsideError("MLflow at http://x: read timed out")
        return known

    monkeypatch.setattr(tracking.StepRun, "curve", deaf)
    with show(recipe) as shown:
        for step in range(1, 4):
            shown.log(line(step))
    with show(recipe) as shown:
        shown.log(line(4))
    assert curve(recipe) == expected(range(1, 5))


def test_logging_a_step_takes_no_time(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = tracking.StepRun.curve

    def slow(self: tracking.StepRun, *args: Any) -> set[int]:
        release.wait(120)
        return real(self, *args)

    monkeypatch.setattr(tracking.StepRun, "curve", slow)
    with show(recipe) as shown:
        began = time.monotonic()
        for step in range(1, 1001):
            shown.log(line(step))
        assert time.monotonic() - began < 20
        release.set()
    assert curve(recipe) == expected(range(1, 1001)), "more metrics than MLflow takes in one batch"


def test_a_process_that_is_told_to_stop_does_not_wait_for_mlflow(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = threading.Event()
    monkeypatch.setattr(tracking.StepRun, "curve", lambda *_: hung.wait(120))
    mlflow_client.open_client(recipe.tracking.uri)  # imports MLflow, which takes seconds
    began = time.monotonic()
    with pytest.raises(SystemExit):
        train_and_raise(recipe, SystemExit(143), steps=1)
    assert time.monotonic() - began < 30
    hung.set()


def test_a_step_that_could_not_reach_something_is_failed_in_mlflow(recipe: Recipe) -> None:
    with pytest.raises(OutsideError), show(recipe):
        raise OutsideError("s3://b: away")
    assert nested(recipe).info.status == "FAILED"
    assert nested(recipe).data.tags["isr_dpo.error"] == "OutsideError: s3://b: away"
    with show(recipe):
        assert nested(recipe).info.status == "RUNNING"
        assert "isr_dpo.error" not in nested(recipe).data.tags


def test_other_failures_are_left_to_who_tracks_the_step(recipe: Recipe) -> None:
    with pytest.raises(ModelError), show(recipe):
        raise ModelError("loss nan")
    assert nested(recipe).info.status == "RUNNING"


def test_points_have_the_time_of_their_step(recipe: Recipe) -> None:
    with show(recipe) as shown:
        shown.log(line(1, time=1_700_000_000.25))
        shown.log(line(2))
    client = mlflow_client.open_client(recipe.tracking.uri)
    first, second = client.get_metric_history(nested(recipe).info.run_id, "train/step/loss")
    assert first.timestamp == 1_700_000_000_250
    assert abs(second.timestamp / 1000 - time.time()) < 60
    assert "train/step/time" not in nested(recipe).data.metrics


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(live, "EVERY_SECONDS", 0.05)
    return recipe_at(shared_server())


def test_a_real_server_holds_the_same_curve(served: Recipe) -> None:
    with show(served) as shown:
        for step in range(1, 4):
            shown.log(line(step))
        until(lambda: len(curve(served)) == 3)
    complete(served, [line(step) for step in range(1, 5)])
    assert curve(served) == expected(range(1, 5))
    assert nested(served).info.status == "FINISHED"


def test_nothing_listens_and_training_begins_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    trained = []
    began = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="isr_dpo"), show(recipe_at("http://127.0.0.1:9")) as shown:
        shown.log(line(1))
        trained.append(1)
    assert trained == [1]
    assert time.monotonic() - began < 60
    assert "MLflow at http://127.0.0.1:9" in caplog.text
